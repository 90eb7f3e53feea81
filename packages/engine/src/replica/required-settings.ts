/**
 * Would the replica start? Decided before anything is copied, from the configuration that it will have (R9.1).
 */
import { readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CloneError, changeRequest } from '@pgcloned/contract';
import { checkStartMethod, effectiveSettings, STANDBY_MINIMUM_SETTINGS } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Findings, Seen } from '../preflight/check.ts';
import type { Ready } from '../ready.ts';
import { isDetached } from './detached.ts';
import { actsForSource, listIn, missingLibraries } from './libraries.ts';

/**
 * Finds `REPLICA_SETTINGS_TOO_LOW`, `TOOL_MISSING` (a preloaded library, what starts it) and `REPLICA_START_FAILED` (it cannot
 * be started as this host does it).
 */
export async function checkSettings(
  run: CloneRun,
  ready: Pick<Seen, 'claim' | 'facts' | 'binDirectory' | 'hostConfiguration'>,
  { error }: Findings,
): Promise<void> {
  const { spec } = run.plan;
  const names = [
    ...STANDBY_MINIMUM_SETTINGS,
    'shared_preload_libraries',
    'dynamic_library_path',
    'huge_pages',
  ] as const;
  const source = ready.facts.settings;
  const configured = await configuredSettings(ready, names, run.signal);
  const effective = (name: (typeof names)[number]) =>
    String(spec.replica.settings[name] ?? configured[name] ?? '');

  const detached = isDetached(run.plan);
  // A detached clone takes no sessions in recovery, which then needs no more than this.
  const needed = detached ? (['max_prepared_transactions'] as const) : STANDBY_MINIMUM_SETTINGS;
  for (const name of needed) {
    const value = Number(effective(name));
    const least = Number(source[name]);
    if (Number.isInteger(value) && value >= least) continue;
    const isAsked = spec.replica.settings[name] !== undefined;
    error(
      new CloneError('REPLICA_SETTINGS_TOO_LOW', `${name} of the replica is too low`, {
        facts: { setting: name, value: effective(name), needed: least },
        hint: `Set ${name} to at least ${String(least)} ${ready.hostConfiguration === null ? 'in replica.settings, or leave it out' : `in ${ready.hostConfiguration}`}.`,
        remedies: [
          isAsked || ready.hostConfiguration === null
            ? changeRequest({ replica: { settings: { [name]: least } } })
            : {
                kind: 'append',
                on: 'host',
                where: ready.hostConfiguration,
                text: `${name} = ${String(least)}`,
              },
        ],
      }),
    );
  }
  const libraries = listIn(effective('shared_preload_libraries'));
  const loaded = libraries.filter((library) => !detached || actsForSource(library) === null);
  const missing = await missingLibraries(loaded, {
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
  const pages = Number(source.shared_memory_size_in_huge_pages);
  // As the source has it, it becomes `try` in a detached clone, and `off` in a small one.
  const isSoftened =
    spec.replica.profile !== null || (detached && ready.hostConfiguration === null);
  const isForced =
    spec.replica.settings.huge_pages === 'on' || (effective('huge_pages') === 'on' && !isSoftened);
  if (isForced) await refuseTooFewHugePages(pages).catch(error);
  if (!spec.replica.start) return;
  await checkStartMethod({
    method: run.plan.host.start,
    binDirectory: ready.binDirectory,
    dataDirectory: ready.claim.data.final,
    configFile: ready.hostConfiguration,
    major: ready.facts.major,
    port: spec.replica.port ?? 0,
  });
}

/** @param needed As the source has reckoned it, for its own settings and its own size of a page. */
async function refuseTooFewHugePages(needed: number): Promise<void> {
  const memory = await readFile('/proc/meminfo', 'utf8');
  const free = Number(/^HugePages_Free: *(\d+)$/m.exec(memory)?.[1] ?? 0);
  if (needed <= free) return;
  throw new CloneError('REPLICA_SETTINGS_TOO_LOW', 'this host has too few huge pages', {
    facts: { setting: 'huge_pages', value: 'on', needed, free },
    hint: `With huge_pages = on the replica does not start without about ${String(needed)} of them: raise vm.nr_hugepages here, or let it go on without.`,
    remedies: [changeRequest({ replica: { settings: { huge_pages: 'try' } } })],
  });
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
