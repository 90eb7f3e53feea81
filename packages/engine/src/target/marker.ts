/**
 * The marker: a file that says which clone filled a directory, and whether it finished.
 *
 * It names the directory's path, device, inode and birth, so that a copy or a rename of the directory is not taken for ours.
 * The number of a device may be another one after a restart of the host; then the birth, which nobody can copy, tells.
 * Only a directory whose marker matches may be emptied, reused or removed (R11.5). Whether a data directory is finished
 * is decided by its pg_control (R2.5); a WAL or tablespace directory has none, so its marker says it, and the data
 * directory that it belongs to has the last word.
 */
import { constants } from 'node:fs';
import { type FileHandle, lstat, open } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { codeOf, isMissing, isWithin, readPlainFile, writeDurably } from '@pgcloned/process';
import { isUnready } from './unready.ts';

/** What a directory of a clone is for. */
export type DirectoryKind = 'data' | 'wal' | 'temporary-wal' | 'tablespace';

export interface Marker {
  readonly cloneId: string;
  /** The data directory of the clone that this directory is a part of. */
  readonly dataDirectory: string;
  readonly finished: boolean;
  /** What had to be made for a directory that is not finished, as nobody else may live to tell; null: it was there. */
  readonly madeFrom?: string | null;
}

interface Identity {
  readonly path: string;
  readonly device: string;
  readonly inode: string;
  /** When the directory was made, in nanoseconds since 1970; 0 where the filesystem does not tell. */
  readonly birth: string;
}

type StoredMarker = Marker & Identity;

const IN_DIRECTORY = '.pgcloned-marker';

/**
 * Where the marker of a directory lies. That of a tablespace's version directory stands beside it: inside, it would
 * keep the server from removing the directory when the tablespace is dropped.
 */
export function markerPath(directory: string, kind: DirectoryKind): string {
  return kind === 'tablespace'
    ? join(dirname(directory), `.pgcloned-marker-${basename(directory)}`)
    : join(directory, IN_DIRECTORY);
}

export async function writeMarker(
  directory: string,
  kind: DirectoryKind,
  marker: Marker,
): Promise<void> {
  await using opened = await openDirectory(directory);
  const stored: StoredMarker = { ...marker, ...(await identityOf(directory, opened)) };
  await writeDurably(markerPath(directory, kind), `${JSON.stringify(stored)}\n`);
}

/** The marker of this very directory, or null if it has none or that of another directory. A link is no directory. */
export async function readMarker(directory: string, kind: DirectoryKind): Promise<Marker | null> {
  try {
    await using opened = await openDirectory(directory);
    return await readMarkerOf(opened, directory, kind);
  } catch (error) {
    if (isMissing(error) || codeOf(error) === 'ELOOP') return null;
    throw error;
  }
}

/** The same of a directory that was opened, whatever its path leads to by now. What another user has written marks nothing. */
export async function readMarkerOf(
  opened: FileHandle,
  directory: string,
  kind: DirectoryKind,
): Promise<Marker | null> {
  const path = markerPath(directory, kind);
  const found = await readPlainFile(
    dirname(path) === directory ? join(insideOf(opened), basename(path)) : path,
  );
  if (found?.isOurs !== true) return null;
  try {
    const stored = JSON.parse(found.text) as Partial<StoredMarker> | null;
    const { cloneId, dataDirectory, finished, madeFrom = null } = stored ?? {};
    if (!isSame(stored ?? {}, await identityOf(directory, opened))) return null;
    if (typeof cloneId !== 'string' || typeof dataDirectory !== 'string') return null;
    // From there on all that is empty goes with the directory: nothing but what lies above it.
    if (madeFrom !== null && !(typeof madeFrom === 'string' && isWithin(directory, madeFrom)))
      return null;
    return { cloneId, dataDirectory, finished: finished === true, madeFrom };
  } catch (error) {
    // None that can be read: not ours.
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** The clone that began to fill this directory and never finished, or null. Such a directory counts as empty. */
export async function unfinishedCloneIn(
  directory: string,
  kind: DirectoryKind,
): Promise<Marker | null> {
  const marker = await readMarker(directory, kind);
  if (marker === null) return null;
  if (kind === 'data') return (await isStartable(directory)) ? null : marker;
  if (!marker.finished) return marker;
  const owner = await readMarker(marker.dataDirectory, 'data');
  const abandoned = owner?.cloneId === marker.cloneId && !(await isStartable(marker.dataDirectory));
  return abandoned ? marker : null;
}

/**
 * Whether the directory holds this clone, complete: then it is the user's. An old cluster that this clone was about to
 * bring up to date has a pg_control, too; its marker is not finished.
 */
export async function isPublished(dataDirectory: string, cloneId: string): Promise<boolean> {
  const marker = await readMarker(dataDirectory, 'data');
  if (marker === null || !marker.finished) return false;
  return marker.cloneId === cloneId && (await isStartable(dataDirectory));
}

/** Whether a server starts there: it has a pg_control, and nothing of `onReady` is still to run. */
export async function isStartable(dataDirectory: string): Promise<boolean> {
  return (await hasControlFile(dataDirectory)) && !(await isUnready(dataDirectory));
}

export async function hasControlFile(dataDirectory: string): Promise<boolean> {
  return await exists(join(dataDirectory, 'global', 'pg_control'));
}

/** Whether there is anything of this name, be it a link that leads nowhere. */
export async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (isMissing(error) || codeOf(error) === 'ELOOP') return false;
    throw error;
  }
}

function isSame(stored: Partial<Identity>, { path, device, inode, birth }: Identity): boolean {
  if (stored.path !== path || stored.inode !== inode) return false;
  return stored.device === device || (birth !== '0' && stored.birth === birth);
}

/** Not through a link in its place, which somebody else may have put there. */
export async function openDirectory(path: string): Promise<FileHandle> {
  const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = constants;
  return await open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
}

/** A path to what is in an opened directory, also when that was moved away and its name leads elsewhere. */
export const insideOf = ({ fd }: FileHandle) => `/proc/self/fd/${String(fd)}`;

async function identityOf(path: string, opened: FileHandle): Promise<Identity> {
  const { dev, ino, birthtimeNs } = await opened.stat({ bigint: true });
  return { path, device: String(dev), inode: String(ino), birth: String(birthtimeNs) };
}
