/**
 * What a copy is made of: the data directory and each tablespace, every one with what is to be copied of it.
 */
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { readTablespaces } from '@pgcloned/postgres';
import { type ByteName, remoteExists, type SourceEntry } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { claimTablespaces } from '../target/claim.ts';
import type { Place, TablespacePlace } from '../target/layout.ts';
import { exists } from '../target/marker.ts';
import { targetIsSource } from '../target/old-cluster.ts';
import { type Selection, selectDataDirectory, selectTablespace } from './select.ts';
import type { SourceDirectory } from './transport.ts';
import type { CheckedRoot } from './verification.ts';

export type Root = SourceDirectory & CheckedRoot;

/** The set at this moment, which is after the start of the backup (R1.9). */
export async function tablespacesNow(
  run: CloneRun,
  ready: Ready,
): Promise<readonly TablespacePlace[]> {
  const now = await readTablespaces(ready.session, run.signal);
  const known = new Map(ready.tablespaces.map((place) => [place.oid, place]));
  const added = now.filter(({ oid, location }) => known.get(oid)?.source !== location);
  const places = await claimTablespaces(run, ready, {
    ...ready.facts,
    tablespaces: added,
    sameHost: ready.sameHost,
  });
  return [
    ...ready.tablespaces.filter(({ oid, source }) =>
      now.some((one) => one.oid === oid && one.location === source),
    ),
    ...places,
  ];
}

/** R1.8: of a tablespace only the version directory; each root is a module of its own. */
export function rootsOf(ready: Ready, tablespaces: readonly TablespacePlace[]): readonly Root[] {
  return [
    {
      module: 'pgdata',
      source: ready.facts.dataDirectory,
      destination: ready.data.build,
      prefix: '',
    },
    ...tablespaces.map(({ oid, source, build }) => ({
      module: `tablespace-${oid}`,
      source: join(source, ready.facts.tablespaceDirectoryName),
      destination: build,
      prefix: `pg_tblspc/${oid}/${ready.facts.tablespaceDirectoryName}/`,
    })),
  ];
}

/** What of a listing of `root` is copied. */
export function selectRoot({
  ready,
  tablespaces,
  root,
  listing,
}: {
  readonly ready: Ready;
  readonly tablespaces: readonly TablespacePlace[];
  readonly root: Root;
  /** Null: it does not exist. */
  readonly listing: readonly SourceEntry[] | null;
}): { readonly selection: Selection; readonly tablespacesInside: readonly ByteName[] } {
  const isDataDirectory = root.source === ready.facts.dataDirectory;
  // A version directory that nobody has written into yet may be missing (R1.8); PGDATA may not.
  if (listing == null && isDataDirectory) throw vanished(root.source);
  const tablespacesInside = isDataDirectory ? inside(ready, tablespaces) : [];
  const logDirectory = relativeLogDirectory(ready);
  const selection = isDataDirectory
    ? selectDataDirectory(listing ?? [], { tablespacesInside, logDirectory })
    : selectTablespace(listing ?? []);
  return { selection, tablespacesInside };
}

/**
 * What is taken over or replaced must not be what the source itself uses: its server may run in another container, where it
 * is not seen from here (R9.8), and whoever has copied its data directory has copied its links.
 */
export async function refuseSource(
  { plan, signal }: CloneRun,
  { data, wal, facts, host }: Ready,
  tablespaces: readonly TablespacePlace[],
): Promise<void> {
  const pairs: readonly (readonly [Place, string])[] = [
    [data, facts.dataDirectory],
    ...(wal === null ? [] : [[wal, join(facts.dataDirectory, 'pg_wal')] as const]),
    ...tablespaces.map(
      (place) => [place, join(place.source, facts.tablespaceDirectoryName)] as const,
    ),
  ];
  const name = `pgcloned-probe-${plan.id}-${String(plan.attempt)}`;
  for (const [{ final, takesOver, old }, source] of pairs) {
    if ((!takesOver && old === null) || !(await exists(final))) continue;
    const probe = join(final, name);
    await writeFile(probe, '', { flag: 'wx', mode: 0o600 });
    try {
      if (await remoteExists(host.runner(), { path: join(source, name), signal }))
        throw targetIsSource(final, source);
    } finally {
      await rm(probe);
    }
  }
}

function inside(ready: Ready, tablespaces: readonly TablespacePlace[]): readonly string[] {
  const above = `${ready.facts.dataDirectory}/`;
  return tablespaces
    .filter(({ source }) => source.startsWith(above))
    .map(({ source }) => Buffer.from(source.slice(above.length)).toString('latin1'));
}

function relativeLogDirectory({ facts }: Ready): string | null {
  const directory = facts.settings.log_directory ?? '';
  return directory === '' || directory.startsWith('/')
    ? null
    : Buffer.from(directory).toString('latin1');
}

function vanished(path: string): CloneError {
  return new CloneError('SOURCE_CHANGED', `${path} has vanished from the source`, {
    facts: { path },
    hint: 'See whether the source still runs, then clone again.',
  });
}
