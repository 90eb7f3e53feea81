/**
 * A second host on this machine, as far as a clone can tell: a network of its own, joined to ours by a cable, and another
 * directory under a path that both have. Needs root.
 */
import { randomInt } from 'node:crypto';
import { runProcess } from '@pgcloned/process';

const TOOL_TIMEOUT_MS = 10_000;

export interface OtherHost extends AsyncDisposable {
  /** Our address on the cable: where the other host reaches us. */
  readonly address: string;
  /** The address of the other host. */
  readonly clientAddress: string;
  /** The argv that runs `argv` over there. */
  readonly on: (
    argv: readonly string[],
    mount?: { readonly path: string; readonly by: string },
  ) => readonly string[];
}

export async function otherHost(): Promise<OtherHost> {
  // Tests run side by side: names and addresses are drawn, and ip refuses what is taken.
  const number = randomInt(1, 250 * 250);
  const subnet = `10.${String(200 + (number % 50))}.${String(number % 250)}`;
  const [address, clientAddress] = [`${subnet}.1`, `${subnet}.2`];
  const name = `testbed-${String(number)}`;
  const [ours, theirs] = [`tb${String(number)}a`, `tb${String(number)}b`];
  await using undo = new AsyncDisposableStack();
  await ip('netns', 'add', name);
  undo.defer(async () => {
    await ip('netns', 'delete', name);
  });
  // The cable ends with the namespace that holds one end of it.
  await ip('link', 'add', ours, 'type', 'veth', 'peer', 'name', theirs, 'netns', name);
  await ip('address', 'add', `${address}/24`, 'dev', ours);
  await ip('link', 'set', ours, 'up');
  await ip('-netns', name, 'address', 'add', `${clientAddress}/24`, 'dev', theirs);
  await ip('-netns', name, 'link', 'set', theirs, 'up');
  await ip('-netns', name, 'link', 'set', 'lo', 'up');
  const owned = undo.move();
  return {
    address,
    clientAddress,
    on: (argv, mount) => {
      const inNetwork = ['nsenter', `--net=/run/netns/${name}`, '--'];
      if (mount === undefined) return [...inNetwork, ...argv];
      const script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"';
      const unshare = ['unshare', '--mount', '--propagation', 'private', 'sh', '-c', script, 'sh'];
      return [...inNetwork, ...unshare, mount.by, mount.path, ...argv];
    },
    [Symbol.asyncDispose]: async () => {
      await owned.disposeAsync();
    },
  };
}

async function ip(...args: readonly string[]): Promise<void> {
  await runProcess(
    { file: 'ip', args, env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } },
    { signal: AbortSignal.timeout(TOOL_TIMEOUT_MS) },
  );
}
