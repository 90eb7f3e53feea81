/**
 * Would the replica start? Decided before anything is copied, from the configuration that it will have (R9.1).
 */
import { access, constants } from 'node:fs/promises';
import { createServer } from 'node:net';
import { dirname, isAbsolute, join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { effectiveSettings, STANDBY_MINIMUM_SETTINGS } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';

/** @throws {CloneError} `REPLICA_SETTINGS_TOO_LOW`, `TOOL_MISSING` (a preloaded library), `TARGET_INVALID` (the port). */
export async function refuseUnfitSettings(
  run: CloneRun,
  ready: Pick<Ready, 'facts' | 'binDirectory' | 'hostConfiguration'>,
): Promise<void> {
  const { spec } = run.plan;
  const names = [...STANDBY_MINIMUM_SETTINGS, 'shared_preload_libraries', 'port'] as const;
  const source = ready.facts.settings;
  const configured: Readonly<Record<string, string>> =
    ready.hostConfiguration === null
      ? source
      : await effectiveSettings({
          binDirectory: ready.binDirectory,
          dataDirectory: dirname(ready.hostConfiguration),
          configFile: ready.hostConfiguration,
          names,
          signal: run.signal,
        });
  const effective = (name: (typeof names)[number]) =>
    String(spec.replica.settings[name] ?? configured[name] ?? '');

  for (const name of STANDBY_MINIMUM_SETTINGS) {
    const value = Number(effective(name));
    const needed = Number(source[name]);
    if (Number.isInteger(value) && value >= needed) continue;
    throw new CloneError('REPLICA_SETTINGS_TOO_LOW', `${name} of the replica is too low`, {
      facts: { setting: name, value: effective(name), needed },
      hint: `Set ${name} to at least ${String(needed)} ${ready.hostConfiguration === null ? 'in replica.settings, or leave it out' : `in ${ready.hostConfiguration}`}.`,
    });
  }
  await refuseMissingLibraries(effective('shared_preload_libraries'), ready.binDirectory);
  if (spec.replica.start) await refuseTakenPort(spec.replica.port ?? Number(effective('port')));
}

async function refuseMissingLibraries(setting: string, binDirectory: string): Promise<void> {
  const libraryDirectory = join(dirname(binDirectory), 'lib');
  for (const quoted of setting.split(',')) {
    const library = quoted.trim().replace(/^"(.*)"$/, '$1');
    if (library === '') continue;
    const name = library.replace(/^\$libdir\//, '').replace(/(?:\.so)?$/, '.so');
    const path = isAbsolute(name) ? name : join(libraryDirectory, name);
    try {
      await access(path, constants.R_OK);
    } catch (cause) {
      throw new CloneError('TOOL_MISSING', `the library ${library} is not installed on this host`, {
        facts: { setting: 'shared_preload_libraries', library, path },
        hint: 'Install the package of the extension here as on the source; the replica loads it at start.',
        cause,
      });
    }
  }
}

async function refuseTakenPort(port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const server = createServer();
  server.once('error', (cause) => {
    reject(
      new CloneError('TARGET_INVALID', `port ${String(port)} is taken on this host`, {
        facts: { port },
        hint: 'Choose another replica.port, or stop what listens there.',
        cause,
      }),
    );
  });
  server.listen({ port, host: '127.0.0.1' }, () => {
    server.close(() => {
      resolve();
    });
  });
  await promise;
}
