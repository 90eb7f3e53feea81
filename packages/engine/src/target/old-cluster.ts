/**
 * The cluster that `resync` brings up to date in place: whether it may be, what of it lies outside its data directory,
 * and how it is given up.
 *
 * It is given up by taking its pg_control away (R2.5), once the marker of the clone is on the disk and before anything
 * else of it is changed. So a crash at any moment leaves either the old cluster, whole and startable, or an unfinished
 * clone that the next one takes up.
 */
import { access, constants, lstat, readdir, readFile, realpath, rename } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CloneError, type Leftover, type Notice } from '@pgcloned/contract';
import {
  type ControlFile,
  isServerRunning,
  readLocalControlFile,
  type SourceFacts,
} from '@pgcloned/postgres';
import { ifMissing, isWithin, quoteForShell, syncDirectory } from '@pgcloned/process';
import { bytePath } from '../copy/directories.ts';
import { listLocal } from '../copy/reconcile.ts';
import type { ClonePlan } from '../plan.ts';
import type { Place } from './layout.ts';
import { exists, hasControlFile, readMarker, unfinishedCloneIn, writeMarker } from './marker.ts';

/** @throws {CloneError} `TARGET_IN_USE` if a server runs on the directory. */
export async function refuseRunningServer(dataDirectory: string): Promise<void> {
  const server = await isServerRunning(dataDirectory);
  if (server === null) return;
  const marker = await readMarker(dataDirectory, 'data');
  const clone = marker?.finished === true ? marker.cloneId : null;
  const how = clone === null ? '' : `pgcloned clone stop ${clone}, or `;
  throw new CloneError('TARGET_IN_USE', `a PostgreSQL server runs on ${dataDirectory}`, {
    facts: { path: dataDirectory, pid: server.pid, clone },
    hint: `Stop it (${how}pg_ctl stop -D ${dataDirectory}) if it may be replaced, or choose another directory.`,
  });
}

/**
 * What somebody protects is neither replaced nor brought up to date. An unfinished copy is no clone that could be lost.
 *
 * @throws {CloneError} `CLONE_PROTECTED`
 */
export async function refuseProtected(
  dataDirectory: string,
  { id, isProtected }: Pick<ClonePlan, 'id' | 'isProtected'>,
): Promise<void> {
  const marker = await readMarker(dataDirectory, 'data');
  if (marker?.finished !== true || marker.cloneId === id) return;
  if (!(await isProtected(marker.cloneId))) return;
  throw new CloneError('CLONE_PROTECTED', `${dataDirectory} holds a clone that is protected`, {
    facts: { dataDirectory, clone: marker.cloneId },
    hint: `Reset clone ${marker.cloneId}, take its protection back (PATCH it with {"protected": false}) if it may go, or choose another directory.`,
  });
}

export function targetIsSource(path: string, source: string): CloneError {
  return new CloneError('TARGET_IN_USE', `${path} is the source's own`, {
    facts: { path, source },
    hint: 'Choose another directory for the clone.',
  });
}

/**
 * Whether what lies in a data directory is an older state of the source's cluster. Of an unfinished clone nobody knows,
 * and nobody would miss it.
 *
 * @returns What the user should know before the old contents are given up.
 * @throws {CloneError} `TARGET_OTHER_CLUSTER`, or `TARGET_INVALID` if it cannot be told.
 */
export async function refuseOtherSystem(
  dataDirectory: string,
  facts: Pick<SourceFacts, 'systemIdentifier' | 'major' | 'timeline'>,
  signal: AbortSignal,
): Promise<readonly Notice[]> {
  if ((await unfinishedCloneIn(dataDirectory, 'data')) !== null) return [];
  const major = (await readFile(join(dataDirectory, 'PG_VERSION'), 'utf8')).trim();
  if (major !== String(facts.major)) {
    throw new CloneError(
      'TARGET_OTHER_CLUSTER',
      `${dataDirectory} is of PostgreSQL ${major}, and the source is of ${String(facts.major)}`,
      {
        facts: { path: dataDirectory, major, majorOfSource: facts.major },
        hint: 'Clone with ifExists: replace, or choose another directory.',
      },
    );
  }
  const { systemIdentifier, timeline } = await readOwnControlFile(dataDirectory, signal);
  if (systemIdentifier !== facts.systemIdentifier) {
    throw new CloneError(
      'TARGET_OTHER_CLUSTER',
      `${dataDirectory} holds the cluster ${systemIdentifier}, and the source is ${facts.systemIdentifier}`,
      {
        facts: {
          path: dataDirectory,
          systemIdentifier,
          systemIdentifierOfSource: facts.systemIdentifier,
        },
        hint: 'Only an older state of the same cluster can be brought up to date. Clone with ifExists: replace if that cluster is no longer needed, or choose another directory.',
      },
    );
  }
  const warnings: Notice[] = [
    {
      code: 'OLD_CONTENTS_LOST',
      message: `${dataDirectory} is brought up to date in place: once the copy begins, its old contents cannot be started any more, also if the clone fails`,
    },
  ];
  if (timeline > facts.timeline) {
    warnings.push({
      code: 'TIMELINE_UNKNOWN',
      message: `${dataDirectory} is on timeline ${String(timeline)}, which the source, on timeline ${String(facts.timeline)}, has never seen: it was promoted later`,
    });
  }
  return warnings;
}

async function readOwnControlFile(
  dataDirectory: string,
  signal: AbortSignal,
): Promise<ControlFile> {
  const path = join(dataDirectory, 'global', 'pg_control');
  try {
    return await readLocalControlFile(dataDirectory, signal);
  } catch (cause) {
    signal.throwIfAborted();
    throw new CloneError('TARGET_INVALID', `${path} does not tell which cluster this is`, {
      facts: { path, reason: cause instanceof Error ? cause.message : String(cause) },
      hint: 'Look at it with pg_controldata. If the directory is no longer needed, clone with ifExists: replace.',
      cause,
    });
  }
}

/**
 * Files of others can be removed and made anew; a directory of others cannot, nor one that a server runs on.
 *
 * @throws {CloneError} `TARGET_NOT_WRITABLE`, `TARGET_IN_USE`.
 */
export async function refuseUnfitContents(root: string): Promise<void> {
  const names = await listLocal(root).catch((error: unknown) => {
    const { code, path } = error as { readonly code?: string; readonly path?: string | Buffer };
    throw code === 'EACCES' ? ofAnother(root, (path ?? root).toString()) : error;
  });
  for (const [name, { type }] of [['', { type: 'directory' }] as const, ...names]) {
    const path = bytePath(root, name);
    if (name.endsWith('/postmaster.pid')) await refuseRunningServer(dirname(path.toString()));
    if (type !== 'directory') continue;
    const { uid } = await lstat(path);
    const mayEnter = await access(path, constants.R_OK | constants.W_OK | constants.X_OK).then(
      () => true,
      () => false,
    );
    if (!mayEnter || uid !== process.geteuid?.()) throw ofAnother(root, path.toString());
  }
}

function ofAnother(root: string, path: string): CloneError {
  return new CloneError('TARGET_NOT_WRITABLE', `${path} cannot be written`, {
    facts: { path },
    hint: `Make everything in ${root} belong to the user that runs the worker (chown --recursive).`,
  });
}

/**
 * Whether a link in pg_tblspc leads to the location. As long as an unfinished clone
 * has these links, they are those of the cluster that it was.
 */
export async function hasTablespace(dataDirectory: string, location: string): Promise<boolean> {
  return (await tablespaceLocations(dataDirectory)).includes(location);
}

/** Where pg_wal lies, if it is a link; else null. */
export async function externalWal(dataDirectory: string): Promise<string | null> {
  const path = join(dataDirectory, 'pg_wal');
  const found = await lstat(path).catch(ifMissing(null));
  // Where it leads may be gone.
  return found?.isSymbolicLink() === true ? await realpath(path).catch(() => null) : null;
}

/**
 * Whether a directory was made for the clone of another data directory, which still links to it: whoever copies a data
 * directory copies its links.
 */
export async function belongsToAnother(
  directory: string,
  kind: 'wal' | 'tablespace',
  dataDirectory: string,
): Promise<boolean> {
  const owner = (await readMarker(directory, kind))?.dataDirectory ?? dataDirectory;
  if (owner === dataDirectory) return false;
  return kind === 'wal'
    ? (await externalWal(owner)) === directory
    : await hasTablespace(owner, dirname(directory));
}

async function tablespaceLocations(dataDirectory: string): Promise<readonly string[]> {
  const directory = join(dataDirectory, 'pg_tblspc');
  const names = await readdir(directory).catch(ifMissing([]));
  // Where one of them leads may be gone.
  const locations = await Promise.all(
    names.map(async (name) => await realpath(join(directory, name)).catch(() => null)),
  );
  return locations.filter((location) => location !== null);
}

/**
 * What of the old cluster lies outside its data directory and is no part of the clone. It is never removed: a link does
 * not prove that nobody else uses what it leads to.
 *
 * @param isOfSource Whether a directory is the source's own, on the same host: nothing may tell to remove that.
 */
export async function orphansOf(
  dataDirectory: string,
  {
    places,
    tablespaceDirectoryName,
    isOfSource,
  }: {
    readonly places: readonly Pick<Place, 'final'>[];
    readonly tablespaceDirectoryName: string;
    readonly isOfSource: (directory: string) => boolean;
  },
): Promise<readonly Leftover[]> {
  const wal = await externalWal(dataDirectory);
  const directories = [
    ...(wal === null ? [] : [{ directory: wal, kind: 'wal' } as const]),
    ...(await tablespaceLocations(dataDirectory)).map(
      (location) =>
        ({ directory: join(location, tablespaceDirectoryName), kind: 'tablespace' }) as const,
    ),
  ];
  const orphans: Leftover[] = [];
  for (const { directory, kind } of directories) {
    const isInUse =
      isOfSource(directory) ||
      isWithin(directory, dataDirectory) ||
      isWithin(dataDirectory, directory) ||
      places.some(({ final }) => isWithin(final, directory)) ||
      (await belongsToAnother(directory, kind, dataDirectory));
    if (isInUse || !(await exists(directory))) continue;
    orphans.push({
      what: `${directory} of the old cluster in ${dataDirectory}`,
      remedy: `rm -r ${quoteForShell(directory)}`,
    });
  }
  return orphans;
}

/**
 * Takes the pg_control of a cluster away: nothing that was there can be started any longer.
 *
 * @param beginJournal Says durably enough for a crash of ours that what lies there can be built upon.
 * @throws {CloneError} `TARGET_IN_USE` if a server runs on it; then nothing is changed.
 */
export async function giveUpOldCluster(
  dataDirectory: string,
  {
    cloneId,
    beginJournal,
  }: { readonly cloneId: string; readonly beginJournal: () => Promise<void> },
): Promise<void> {
  if (!(await hasControlFile(dataDirectory))) return;
  await refuseRunningServer(dataDirectory);
  await writeMarker(dataDirectory, 'data', { cloneId, dataDirectory, finished: false });
  await beginJournal();
  await takeControlFileAway(dataDirectory);
}

/**
 * From here on, durably, the directory cannot be started.
 *
 * @throws {CloneError} `TARGET_IN_USE` if a server runs on it; then nothing is changed.
 */
export async function takeControlFileAway(dataDirectory: string): Promise<void> {
  const directory = join(dataDirectory, 'global');
  // Its new name is on no list of a source's, so a copy into the directory removes it.
  const [control, aside] = ['pg_control', 'pgcloned.old-pg_control'].map((name) =>
    join(directory, name),
  ) as [string, string];
  await rename(control, aside);
  try {
    // Somebody may have started it since: with its pg_control it goes on as if nothing had been.
    await refuseRunningServer(dataDirectory);
  } catch (error) {
    await rename(aside, control);
    throw error;
  }
  await syncDirectory(directory);
}
