/**
 * Loaded into the worker ahead of the product (`node --import …?socket=PATH`), so that the harness can hold a clone in the middle of a
 * phase, however short that is.
 *
 * The functions of holds.ts are wrapped while their modules are loaded: a clone that comes to one says so on a socket and
 * goes on when it is told to. Only that clone waits; the worker goes on beating and answering. The product knows nothing
 * of it, and what runs is the code that runs without.
 */
import { once } from 'node:events';
import { registerHooks } from 'node:module';
import { createConnection } from 'node:net';
import { HOLDS } from './holds.ts';

/** The module itself; the name without it is that of the wrapper. */
const ITSELF = '?itself';

const socketPath = new URL(import.meta.url).searchParams.get('socket') ?? '';

export function held<Arguments extends unknown[], Result>(
  name: string,
  when: 'before' | 'after',
  real: ((...args: Arguments) => Promise<Result>) | undefined,
): (...args: Arguments) => Promise<Result> {
  if (real === undefined) throw new Error(`the product has no function ${name} any more`);
  return async (...args) => {
    if (when === 'before') await untilLetGo(name);
    const result = await real(...args);
    if (when === 'after') await untilLetGo(name);
    return result;
  };
}

/** Settles when the harness closes the connection, which it does at once where it wants to hold nothing. */
async function untilLetGo(name: string): Promise<void> {
  const socket = createConnection(socketPath);
  socket.resume();
  socket.write(`${name}\n`);
  await once(socket, 'close');
}

registerHooks({
  load(url, context, nextLoad) {
    const wrapped = HOLDS.filter(({ module }) => url.endsWith(`/packages/${module}`));
    if (wrapped.length === 0) return nextLoad(url, context);
    const source = [
      `import { held } from ${JSON.stringify(import.meta.url)};`,
      `import * as itself from ${JSON.stringify(url + ITSELF)};`,
      `export * from ${JSON.stringify(url + ITSELF)};`,
      ...wrapped.map(
        ({ name, when }) => `export const ${name} = held('${name}', '${when}', itself.${name});`,
      ),
    ];
    return { format: 'module', source: source.join('\n'), shortCircuit: true };
  },
});
