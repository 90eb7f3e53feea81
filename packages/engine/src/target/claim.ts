/**
 * Claims the directories of a clone: guarded, locked, found free, replaceable or fit to be brought up to date. Nothing is
 * changed yet, but for an interrupted swap of a dead run, which is put right first.
 */
import { realpath } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import type { SourceFacts, Tablespace } from '@pgcloned/postgres';
import { isWithin } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import { guardPath, inspectDirectory, refuseNesting, resolveReal } from './guard.ts';
import {
  isMountPoint,
  isWritable,
  makePlace,
  type Place,
  placeInUse,
  type TablespacePlace,
  temporaryWalPath,
} from './layout.ts';
import type { DirectoryKind } from './marker.ts';
import {
  belongsToAnother,
  externalWal,
  hasTablespace,
  refuseProtected,
  refuseRunningServer,
} from './old-cluster.ts';
import { whyUnmovable } from './rename-trial.ts';
import { recoverSwap } from './swap.ts';

/** The directories that the caller names, as the request calls them. */
export type TargetField = 'dataDirectory' | 'walDirectory' | 'temporaryWalDirectory';

export interface Claim {
  readonly data: Place;
  /** Null: pg_wal lies in the data directory. */
  readonly wal: Place | null;
  readonly temporaryWalDirectory: string;
}

/**
 * Data directory, WAL directory and temporary WAL directory: what is known without asking the source.
 *
 * @param refused Told of each directory that may not be written, with its field of the request.
 * @returns Null if one was refused.
 * @throws {CloneError} What stands against all of them together.
 */
export async function claimTarget(
  run: CloneRun,
  refused: (error: unknown, field: TargetField) => void,
): Promise<Claim | null> {
  const { target } = run.plan.spec;
  const guarded = async (field: TargetField): Promise<string | null> => {
    const path = target[field];
    try {
      return path === null ? null : await guardPath(path, run.plan.host);
    } catch (error) {
      refused(error, field);
      return null;
    }
  };
  const dataDirectory = await guarded('dataDirectory');
  const walDirectory = await guarded('walDirectory');
  const temporaryWalDirectory = await guarded('temporaryWalDirectory');
  if (
    dataDirectory === null ||
    (walDirectory === null) !== (target.walDirectory === null) ||
    (temporaryWalDirectory === null) !== (target.temporaryWalDirectory === null)
  )
    return null;
  const directories = [dataDirectory, ...(walDirectory === null ? [] : [walDirectory])];
  refuseNesting(directories);

  await run.locks.take(directories, run.signal);
  if (!run.looksOnly && (await recoverSwap(dataDirectory)) === 'reverted')
    run.observer.log('info', 'put back what an interrupted clone had moved aside');
  await refuseRunningServer(dataDirectory);

  const data = await claimDataDirectory(run, dataDirectory);
  const wal =
    walDirectory === null
      ? null
      : await claimPart(
          run,
          'wal',
          walDirectory,
          data,
          (await externalWal(dataDirectory)) === walDirectory,
        );
  return {
    data,
    wal,
    temporaryWalDirectory: await temporaryWalPath(target, wal ?? data, run.plan.id),
  };
}

/**
 * A place for each tablespace of the source, by the caller's mapping or at the same path (R1.8).
 *
 * @param refused Told of each that cannot have one; it may throw, and does so by default.
 */
export async function claimTablespaces(
  run: CloneRun,
  claim: Claim,
  facts: TablespaceFacts,
  refused: (error: unknown, source: string) => void = (error) => {
    throw error;
  },
): Promise<readonly TablespacePlace[]> {
  const places: TablespacePlace[] = [];
  for (const tablespace of facts.tablespaces) {
    try {
      places.push(await claimTablespace(run, claim, { ...tablespace, facts, places }));
    } catch (error) {
      refused(error, tablespace.location);
    }
  }
  return places;
}

type TablespaceFacts = Pick<SourceFacts, 'dataDirectory' | 'tablespaceDirectoryName'> & {
  readonly tablespaces: readonly Pick<Tablespace, 'oid' | 'location'>[];
  readonly sameHost: boolean;
};

async function claimTablespace(
  run: CloneRun,
  claim: Claim,
  {
    oid,
    location: source,
    facts,
    places,
  }: {
    readonly oid: string;
    readonly location: string;
    readonly facts: TablespaceFacts;
    readonly places: readonly TablespacePlace[];
  },
): Promise<TablespacePlace> {
  const mapped = run.plan.spec.target.tablespaces[source];
  if (mapped === undefined && isWithin(source, facts.dataDirectory)) {
    const place = placeInside(claim.data, { oid, source }, facts);
    await refuseLink(place);
    return place;
  }
  const location = await guardPath(mapped ?? source, run.plan.host);
  if (facts.sameHost) await refuseShared(location, source);
  refuseNesting([
    claim.data.final,
    ...(claim.wal === null ? [] : [claim.wal.final]),
    ...places.filter(({ final }) => !isWithin(final, claim.data.final)).map((one) => one.location),
    location,
  ]);
  const final = join(location, facts.tablespaceDirectoryName);
  await run.locks.take([final], run.signal);
  const isOfOld = await hasTablespace(claim.data.final, location);
  const place = await claimPart(run, 'tablespace', final, claim.data, isOfOld);
  await refuseLink(place);
  return { ...place, oid, source, location };
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
    takesOver: data.takesOver,
  };
}

async function claimDataDirectory(run: CloneRun, final: string): Promise<Place> {
  const { ifExists } = run.plan.spec.target;
  const state = await inspectDirectory(final, 'data');
  const holdsCluster = state === 'data-directory';
  if (holdsCluster && ifExists !== 'fail') await refuseProtected(final, run.plan);
  if (ifExists === 'resync' && (holdsCluster || state === 'unfinished'))
    return placeInUse('data', final);
  if (state !== 'foreign' && !holdsCluster) return freePlace(run, 'data', final);
  if (ifExists !== 'replace' || !holdsCluster)
    throw notEmpty(final, 'data', ifExists, holdsCluster);
  return await placeToReplace(run, 'data', final);
}

/**
 * A directory that is a part of the cluster, but lies elsewhere: what becomes of it is what becomes of the data
 * directory.
 *
 * @param isOfOld Whether it belongs to what lies in the data directory now. That may also be an unfinished clone, of one
 *   that brought the cluster up to date and died: then it is taken over where it died before it came to this part.
 */
async function claimPart(
  run: CloneRun,
  kind: 'wal' | 'tablespace',
  final: string,
  data: Place,
  isOfOld: boolean,
): Promise<Place> {
  const state = await inspectDirectory(final, kind);
  if (state === 'unfinished' && data.takesOver) return placeInUse(kind, final);
  // A version directory is made by a server and removed with its tablespace: an empty one is in use, too.
  const isFree =
    state === 'absent' || state === 'unfinished' || (state === 'empty' && kind === 'wal');
  if (isFree) return freePlace(run, kind, final);
  if (!isOfOld || (await belongsToAnother(final, kind, data.final)))
    throw notEmpty(final, kind, run.plan.spec.target.ifExists, false);
  return data.old === null ? placeInUse(kind, final) : await placeToReplace(run, kind, final);
}

const freePlace = ({ plan }: CloneRun, kind: DirectoryKind, final: string): Place =>
  makePlace(kind, final, { cloneId: plan.id, replaces: false });

async function placeToReplace(run: CloneRun, kind: DirectoryKind, final: string): Promise<Place> {
  if (await isMountPoint(final))
    throw unmovable(final, 'is a mount point or a subvolume and cannot be replaced');
  if (!(await isWritable(dirname(final)))) {
    throw new CloneError('TARGET_NOT_WRITABLE', `${dirname(final)} cannot be written`, {
      facts: { path: final, directory: dirname(final) },
      hint: 'To replace a cluster, a directory is made beside it: make the parent belong to the user that runs the worker.',
    });
  }
  const reason = await whyUnmovable(final);
  if (reason === 'EBUSY') throw unmovable(final, 'is a mount point and cannot be replaced', reason);
  if (reason !== null)
    throw unmovable(
      final,
      reason === 'EXDEV'
        ? 'cannot be moved aside: it belongs to a layer of a container image, or to another quota project'
        : `cannot be moved aside: ${reason}`,
      reason,
    );
  return makePlace(kind, final, { cloneId: run.plan.id, replaces: true });
}

function unmovable(path: string, why: string, reason: string | null = null): CloneError {
  return new CloneError('TARGET_INVALID', `${path} ${why}`, {
    facts: { path, reason },
    hint: 'Clone with method rsync and ifExists: resync if it is of the same cluster. Else stop its server, empty the directory by hand and clone with ifExists: fail, or choose another directory.',
  });
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
        ? `${another}, or clone with ifExists: replace, which removes the old cluster once the new one is there, or resync, which brings an older state of the same cluster up to date in place.`
        : `${another}: what lies there is not a part of a cluster that could be replaced.`,
    },
  );
}

/** What lies behind a link nobody has looked at. Moved away with what is replaced it does no harm. */
async function refuseLink({ final, build }: Place): Promise<void> {
  const { real } = await resolveReal(final);
  if (final !== build || real === final) return;
  throw new CloneError('TARGET_INVALID', `${final} is a link to ${real}`, {
    facts: { path: final, resolvesTo: real },
    hint: 'Remove the link, or choose another directory.',
  });
}

/** Two clusters in one directory destroy each other's files (R1.11). */
async function refuseShared(location: string, source: string): Promise<void> {
  if (location !== (await realpath(source).catch(() => source))) return;
  throw new CloneError('TARGET_INVALID', `the tablespace at ${source} is the source's own`, {
    facts: { location, source },
    hint: `Source and clone share a host: map ${source} to another directory with target.tablespaces.`,
  });
}

/** A mapping that fits no tablespace is a typing error, and the tablespace meant would go to its old path. */
export function unknownLocations(
  { plan }: CloneRun,
  tablespaces: SourceFacts['tablespaces'],
): readonly CloneError[] {
  const known = tablespaces.map(({ location }) => location);
  return Object.keys(plan.spec.target.tablespaces)
    .filter((location) => !known.includes(location))
    .map(
      (location) =>
        new CloneError('TARGET_INVALID', `the source has no tablespace at ${location}`, {
          facts: { location, locationsOfSource: known.join(', ') },
          hint: 'Name locations as pg_tablespace_location() gives them.',
        }),
    );
}
