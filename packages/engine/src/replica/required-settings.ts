/**
 * Would the replica start? Decided before anything is copied, from the configuration that it will have (R9.1).
 */
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { dirname } from 'node:path';
import { CloneError, changeRequest } from '@pgcloned/contract';
import { effectiveSettings, STANDBY_MINIMUM_SETTINGS } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Findings } from '../preflight/check.ts';
import type { Ready } from '../ready.ts';
import { librariesIn, missingLibraries } from './libraries.ts';

/** Finds `REPLICA_SETTINGS_TOO_LOW`, `TOOL_MISSING` (a preloaded library) and `TARGET_INVALID` (the port). */
export async function checkSettings(
  run: CloneRun,
  ready: Pick<Ready, 'facts' | 'binDirectory' | 'hostConfiguration'>,
  { error }: Findings,
): Promise<void> {
  const { spec } = run.plan;
  const names = [
    ...STANDBY_MINIMUM_SETTINGS,
    'shared_preload_libraries',
    'dynamic_library_path',
    'port',
  ] as const;
  const source = ready.facts.settings;
  const configured = await configuredSettings(ready, names, run.signal);
  const effective = (name: (typeof names)[number]) =>
    String(spec.replica.settings[name] ?? configured[name] ?? '');

  for (const name of STANDBY_MINIMUM_SETTINGS) {
    const value = Number(effective(name));
    const needed = Number(source[name]);
    if (Number.isInteger(value) && value >= needed) continue;
    const isAsked = spec.replica.settings[name] !== undefined;
    error(
      new CloneError('REPLICA_SETTINGS_TOO_LOW', `${name} of the replica is too low`, {
        facts: { setting: name, value: effective(name), needed },
        hint: `Set ${name} to at least ${String(needed)} ${ready.hostConfiguration === null ? 'in replica.settings, or leave it out' : `in ${ready.hostConfiguration}`}.`,
        remedies: [
          isAsked || ready.hostConfiguration === null
            ? changeRequest({ replica: { settings: { [name]: needed } } })
            : {
                kind: 'append',
                on: 'host',
                where: ready.hostConfiguration,
                text: `${name} = ${String(needed)}`,
              },
        ],
      }),
    );
  }
  const missing = await missingLibraries(librariesIn(effective('shared_preload_libraries')), {
    binDirectory: ready.binDirectory,
    searchPath: effective('dynamic_library_path'),
    signal: run.signal,
  });
  for (const { library, paths } of missing)
    error(
      new CloneError('TOOL_MISSING', `the library ${library} is not installed on this host`, {
        facts: { setting: 'shared_preload_libraries', library, path: paths.join(', ') },
        hint: 'Install the package of the extension here as on the source; the replica loads it at start.',
      }),
    );
  if (!spec.replica.start) return;
  await refuseTakenPort(spec.replica.port ?? Number(effective('port')));
}

/** What the replica will have, but for what the request sets. */
export async function configuredSettings(
  {
    facts,
    binDirectory,
    hostConfiguration,
  }: Pick<Ready, 'facts' | 'binDirectory' | 'hostConfiguration'>,
  names: readonly string[],
  signal: AbortSignal,
): Promise<Readonly<Record<string, string>>> {
  if (hostConfiguration === null) return facts.settings;
  return await effectiveSettings({
    ...{ binDirectory, names, signal },
    dataDirectory: dirname(hostConfiguration),
    configFile: hostConfiguration,
  });
}

async function refuseTakenPort(port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const server = createServer();
  server.once('error', (cause) => {
    void freePort().then((free) => {
      reject(
        new CloneError('TARGET_INVALID', `port ${String(port)} is taken on this host`, {
          facts: { port },
          hint: 'Choose another replica.port, or stop what listens there.',
          remedies: [changeRequest({ replica: { port: free } })],
          cause,
        }),
      );
    }, reject);
  });
  server.listen({ port, host: '127.0.0.1' }, () => {
    server.close(() => {
      resolve();
    });
  });
  await promise;
}

/** One that nobody listens on just now. */
async function freePort(): Promise<number> {
  const server = createServer().listen({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
