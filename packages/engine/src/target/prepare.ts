/**
 * Making, emptying and removing the directories of a clone. What is removed carries our marker, or we made it just now.
 */
import { lstat, mkdir, readdir, realpath, rm, rmdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { codeOf, ifMissing, quoteForShell, unfinishedWrites } from '@pgcloned/process';
import type { Place } from './layout.ts';
import { besidePrefix, oldPrefix } from './layout.ts';
import {
  type DirectoryKind,
  exists,
  insideOf,
  markerPath,
  openDirectory,
  readMarkerOf,
  unfinishedCloneIn,
  writeMarker,
} from './marker.ts';
import { LOST_AND_FOUND, refuseMountsBelow } from './mounts.ts';

export interface PreparedDirectory {
  readonly path: string;
  readonly kind: DirectoryKind;
  /** The topmost directory that had to be made, to be removed with it; null: it was there. */
  readonly madeFrom: string | null;
}

/** A directory of a clone, with the place where it will lie. */
export interface FilledDirectory extends PreparedDirectory {
  readonly final: string;
}

/**
 * Makes the directory of a place and marks it. What an unfinished clone has left there goes, and so does what is taken
 * over.
 *
 * @param keepContents What lies there is an earlier copy of the same cluster, for the copy to build upon.
 * @param mode Of the directory itself: that of the source's data directory (R6.11).
 * @param spared A directory of this clone that may lie inside and stays.
 */
export async function prepareDirectory(
  place: Pick<Place, 'kind' | 'build'> & Partial<Pick<Place, 'takesOver'>>,
  options: {
    readonly cloneId: string;
    readonly dataDirectory: string;
    readonly mode: number;
    readonly keepContents?: boolean;
    readonly spared?: string;
  },
): Promise<PreparedDirectory> {
  const { kind, build: path, takesOver = false } = place;
  const { cloneId, dataDirectory, mode, keepContents = false, spared } = options;
  const earlier = await unfinishedCloneIn(path, kind);
  const isOurs = takesOver || earlier !== null;
  // Before it is marked as ours: what the clone of another data directory has left no journal of ours knows.
  if (earlier !== null && earlier.dataDirectory !== dataDirectory)
    await emptyDirectory(path, kind, spared);
  // The parents are not ours to restrict: other clones may share them. But nobody else shall change them, whatever our umask.
  const madeParent = await mkdir(dirname(path), { recursive: true, mode: 0o755 });
  const isNew = !(await exists(path));
  if (isNew) await mkdir(path, { mode });
  await refusePlanted(path);
  for (const begun of await unfinishedWrites(markerPath(path, kind))) await rm(begun);
  const madeFrom = madeParent ?? (isNew ? path : (earlier?.madeFrom ?? null));
  try {
    await writeMarker(path, kind, { cloneId, dataDirectory, finished: false, madeFrom });
  } catch (error) {
    // Without its marker it would be somebody else's to the next clone.
    if (madeFrom !== null) await removeMade(path, madeFrom);
    throw error;
  }
  if (isOurs && !keepContents) await emptyDirectory(path, kind, spared);
  return { path, kind, madeFrom };
}

/** Where others may make directories, they may have made this one, or a link in its place, while nobody looked. */
async function refusePlanted(path: string): Promise<void> {
  const stats = await lstat(path);
  const isDirectory = stats.isDirectory() && (await realpath(dirname(path))) === dirname(path);
  if (isDirectory && stats.uid === process.geteuid?.()) return;
  throw new CloneError(
    'TARGET_NOT_WRITABLE',
    isDirectory ? `${path} belongs to another user` : `a link leads away from ${path}`,
    {
      facts: { path, ownerUid: stats.uid },
      hint: `Whoever made it owns what would be in it. See \`ls -ld ${quoteForShell(path)}\`, and remove it, or make it belong to the user that runs the worker.`,
    },
  );
}

/** Whether nothing was written into it since. */
export async function isUntouched({ path, kind }: PreparedDirectory): Promise<boolean> {
  const names = await readdir(path);
  return names.every(
    (name) => name === LOST_AND_FOUND || join(path, name) === markerPath(path, kind),
  );
}

/** Removes what was prepared, and the parents that were made for it as far as they are empty. */
export async function removePrepared({ path, kind, madeFrom }: PreparedDirectory): Promise<void> {
  await emptyDirectory(path, kind);
  await rm(markerPath(path, kind), { force: true });
  if (madeFrom !== null) await removeMade(path, madeFrom);
}

/** Removes a directory and those above it, up to the topmost one that was made for it, as far as they are empty. */
export async function removeMade(path: string, madeFrom: string): Promise<void> {
  for (let directory = path; ; directory = dirname(directory)) {
    try {
      await rmdir(directory);
    } catch (error) {
      const code = codeOf(error);
      // Somebody else has put something there meanwhile.
      if (code === 'ENOTEMPTY') return;
      if (code !== 'ENOENT') throw error;
    }
    if (directory === madeFrom) return;
  }
}

/**
 * Removes a directory that carries our marker.
 *
 * @throws If it does not: that is a bug of the caller.
 */
export async function removeMarked(path: string, kind: DirectoryKind): Promise<void> {
  if (!(await exists(path))) return;
  await removePrepared({ path, kind, madeFrom: path });
}

/**
 * Removes what earlier clones of this directory left beside it, but for what this one has there. Only under its lock:
 * then none of them runs.
 */
export async function removeStrays(
  place: Pick<Place, 'kind' | 'final'>,
  spared: readonly string[] = [],
): Promise<void> {
  const parent = dirname(place.final);
  const names = await readdir(parent).catch(ifMissing([]));
  for (const name of names) {
    if (!name.startsWith(besidePrefix(place.final))) continue;
    const path = join(parent, name);
    // What was replaced goes as a whole (`replaced.ts`).
    if (path.startsWith(oldPrefix(place.final))) continue;
    if (spared.includes(path)) continue;
    for (const kind of [place.kind, 'temporary-wal'] as const) {
      if ((await unfinishedCloneIn(path, kind)) !== null) await removeMarked(path, kind);
    }
  }
}

/**
 * The marker goes last: until then an interrupted removal can be taken up again. What is emptied is the directory that carries
 * the marker, also if somebody puts another one, or a link, in its place meanwhile.
 */
async function emptyDirectory(path: string, kind: DirectoryKind, spared?: string): Promise<void> {
  await using opened = await openDirectory(path);
  if ((await readMarkerOf(opened, path, kind)) === null)
    throw new Error(`${path} carries no marker of ours`);
  await refuseMountsBelow(path);
  for (const name of await readdir(insideOf(opened))) {
    const child = join(path, name);
    if (name === LOST_AND_FOUND || child === markerPath(path, kind) || child === spared) continue;
    await rm(join(insideOf(opened), name), { recursive: true, force: true });
  }
}
