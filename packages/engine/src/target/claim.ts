/**
 * Claims the directories of a clone: guarded, locked, found free or replaceable. Nothing is changed yet, but for an
 * interrupted swap of a dead run, which is put right first.
 */
import { readdir, readlink, realpath } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { isServerRunning, type SourceFacts, type Tablespace } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import { guardPath, inspectDirectory, refuseNesting } from './guard.ts';
import {
  isMountPoint,
  isWritable,
  makePlace,
  type Place,
  type TablespacePlace,
  temporaryWalPath,
} from './layout.ts';
import { isWithin } from './locks.ts';
import type { DirectoryKind } from './marker.ts';
import { recoverSwap } from './swap.ts';

export interface Claim {
  readonly data: Place;
  /** Null: pg_wal lies in the data directory. */
  readonly wal: Place | null;
  readonly temporaryWalDirectory: string;
}

/** Data directory, WAL directory and temporary WAL directory: what is known without asking the source. */
export async function claimTarget(run: CloneRun): Promise<Claim> {
  const { target } = run.plan.spec;
  const dataDirectory = await guardPath(target.dataDirectory, run.plan.host);
  const walDirectory =
    target.walDirectory === null ? null : await guardPath(target.walDirectory, run.plan.host);
  if (target.temporaryWalDirectory !== null)
    await guardPath(target.temporaryWalDirectory, run.plan.host);
  const directories = [dataDirectory, ...(walDirectory === null ? [] : [walDirectory])];
  refuseNesting(directories);

  await run.locks.take(directories, run.signal);
  if ((await recoverSwap(dataDirectory)) === 'reverted')
    run.observer.log('info', 'put back what an interrupted clone had moved aside');
  await refuseRunningServer(dataDirectory);

  const data = await claimPlace(run, 'data', dataDirectory);
  const wal =
    walDirectory === null
      ? null
      : await claimPlace(run, 'wal', walDirectory, async () => {
          const link = await realpath(join(dataDirectory, 'pg_wal')).catch(() => null);
          return data.old !== null && link === walDirectory;
        });
  return {
    data,
    wal,
    temporaryWalDirectory: await temporaryWalPath(target, wal ?? data, run.plan.id),
  };
}

/** A place for each tablespace of the source, by the caller's mapping or at the same path (R1.8). */
export async function claimTablespaces(
  run: CloneRun,
  claim: Claim,
  facts: Pick<SourceFacts, 'dataDirectory' | 'tablespaceDirectoryName'> & {
    readonly tablespaces: readonly Pick<Tablespace, 'oid' | 'location'>[];
    readonly sameHost: boolean;
  },
): Promise<readonly TablespacePlace[]> {
  const mapping = run.plan.spec.target.tablespaces;
  const places: TablespacePlace[] = [];
  for (const { oid, location: source } of facts.tablespaces) {
    const mapped = mapping[source];
    if (mapped === undefined && isWithin(source, facts.dataDirectory)) {
      places.push(placeInside(claim.data, { oid, source }, facts));
      continue;
    }
    const location = await guardPath(mapped ?? source, run.plan.host);
    if (facts.sameHost) await refuseShared(location, source);
    refuseNesting([
      claim.data.final,
      ...(claim.wal === null ? [] : [claim.wal.final]),
      ...places
        .filter(({ final }) => !isWithin(final, claim.data.final))
        .map((one) => one.location),
      location,
    ]);
    const final = join(location, facts.tablespaceDirectoryName);
    await run.locks.take([final], run.signal);
    const place = await claimPlace(
      run,
      'tablespace',
      final,
      async () => claim.data.old !== null && (await linksTo(claim.data.final, location)),
    );
    places.push({ ...place, oid, source, location });
  }
  return places;
}

/** R1.13: a tablespace inside PGDATA stays inside. */
function placeInside(
  data: Place,
  { oid, source }: { readonly oid: string; readonly source: string },
  facts: Pick<SourceFacts, 'dataDirectory' | 'tablespaceDirectoryName'>,
): TablespacePlace {
  const below = source.slice(facts.dataDirectory.length + 1);
  const name = facts.tablespaceDirectoryName;
  return {
    kind: 'tablespace',
    oid,
    source,
    location: join(data.final, below),
    final: join(data.final, below, name),
    build: join(data.build, below, name),
    old: null,
  };
}

async function claimPlace(
  run: CloneRun,
  kind: DirectoryKind,
  final: string,
  /** Whether what lies there belongs to the cluster that is replaced; not asked for the data directory itself. */
  belongsToReplaced: () => Promise<boolean> = async () => await Promise.resolve(false),
): Promise<Place> {
  const { ifExists } = run.plan.spec.target;
  const state = await inspectDirectory(final, kind);
  // A version directory is made by a server and removed with its tablespace: an empty one is in use, too.
  const isFree =
    state === 'absent' || state === 'unfinished' || (state === 'empty' && kind !== 'tablespace');
  if (isFree) return makePlace(kind, final, { cloneId: run.plan.id, replaces: false });
  const isKnown = kind === 'data' ? state === 'data-directory' : await belongsToReplaced();
  if (ifExists !== 'replace' || !isKnown) throw notEmpty(final, kind, ifExists, isKnown);
  if (await isMountPoint(final)) {
    throw new CloneError('TARGET_INVALID', `${final} is a mount point and cannot be replaced`, {
      facts: { path: final },
      hint: 'Stop its server, empty the directory by hand and clone with ifExists: fail.',
    });
  }
  if (!(await isWritable(dirname(final)))) {
    throw new CloneError('TARGET_NOT_WRITABLE', `${dirname(final)} cannot be written`, {
      facts: { path: final, directory: dirname(final) },
      hint: 'To replace a cluster, a directory is made beside it: make the parent belong to the user that runs the worker.',
    });
  }
  return makePlace(kind, final, { cloneId: run.plan.id, replaces: true });
}

function notEmpty(
  path: string,
  kind: DirectoryKind,
  ifExists: string,
  isKnown: boolean,
): CloneError {
  const another =
    kind === 'tablespace'
      ? 'Map the tablespace to another directory with target.tablespaces'
      : 'Choose another directory';
  return new CloneError(
    'TARGET_NOT_EMPTY',
    kind === 'tablespace' ? `${path} exists already` : `${path} is not empty`,
    {
      facts: { path, ifExists },
      hint: isKnown
        ? `${another}, or clone with ifExists: replace, which removes the old cluster once the new one is there.`
        : `${another}: what lies there is not a part of a cluster that could be replaced.`,
    },
  );
}

/** Two clusters in one directory destroy each other's files (R1.11). */
async function refuseShared(location: string, source: string): Promise<void> {
  if (location !== (await realpath(source).catch(() => source))) return;
  throw new CloneError('TARGET_INVALID', `the tablespace at ${source} is the source's own`, {
    facts: { location, source },
    hint: `Source and clone share a host: map ${source} to another directory with target.tablespaces.`,
  });
}

async function refuseRunningServer(dataDirectory: string): Promise<void> {
  const server = await isServerRunning(dataDirectory);
  if (server === null) return;
  throw new CloneError('TARGET_IN_USE', `a PostgreSQL server runs on ${dataDirectory}`, {
    facts: { path: dataDirectory, pid: server.pid },
    hint: `Stop it (pg_ctl stop -D ${dataDirectory}) if it may be replaced, or choose another directory.`,
  });
}

/** A mapping that fits no tablespace is a typing error, and the tablespace meant would go to its old path. */
export function refuseUnknownLocations(
  { plan }: CloneRun,
  tablespaces: SourceFacts['tablespaces'],
): void {
  const mapping = plan.spec.target.tablespaces;
  const known = tablespaces.map(({ location }) => location);
  const unknown = Object.keys(mapping).find((location) => !known.includes(location));
  if (unknown === undefined) return;
  throw new CloneError('TARGET_INVALID', `the source has no tablespace at ${unknown}`, {
    facts: { location: unknown, locationsOfSource: known.join(', ') },
    hint: 'Name locations as pg_tablespace_location() gives them.',
  });
}

async function linksTo(dataDirectory: string, location: string): Promise<boolean> {
  const directory = join(dataDirectory, 'pg_tblspc');
  for (const name of await readdir(directory)) {
    const link = join(directory, name);
    const target = await readlink(link).catch(() => null);
    if (target !== null && (await realpath(target).catch(() => target)) === location) return true;
  }
  return false;
}
