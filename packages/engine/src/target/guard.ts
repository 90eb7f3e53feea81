/**
 * Where a clone may be written. Nothing is changed here: the answer is the real path, or a refusal.
 *
 * A target lies strictly below one of the data roots after all symlinks are resolved, touches nothing of ours and no
 * other PGDATA, and is absent, empty or an unfinished clone of ours, unless the caller allowed to replace a PGDATA.
 */
import { access, constants, lstat, readdir, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { codeOf, isWithin, unfinishedWrites } from '@pgcloned/process';
import { type DirectoryKind, exists, markerPath, unfinishedCloneIn } from './marker.ts';
import { LOST_AND_FOUND } from './mounts.ts';

/** What a server makes in the location of a tablespace: all that lies in it is removed with a database. */
const VERSION_DIRECTORY = /^PG_\d{2}_\d{9}$/;

export interface GuardOptions {
  readonly dataRoots: readonly string[] | null;
  readonly protectedPaths: readonly string[];
}

/**
 * @param path An absolute path as the caller wrote it.
 * @returns The real path of its deepest existing ancestor plus the rest.
 * @throws {CloneError} `TARGET_OUTSIDE_DATA_ROOTS`, `TARGET_INVALID`, `TARGET_NOT_WRITABLE`.
 */
export async function guardPath(path: string, options: GuardOptions): Promise<string> {
  for (;;) {
    const { existing, real } = await resolveReal(path);
    await refuseUnfit(path, real, options);
    // A clone may just be removed from there: then something above it is the deepest that exists.
    if (await isWritableDirectory(path, existing)) return real;
  }
}

async function refuseUnfit(path: string, real: string, options: GuardOptions): Promise<void> {
  const roots = options.dataRoots === null ? null : await realPaths(options.dataRoots);
  const root = roots?.find((candidate) => real !== candidate && isWithin(real, candidate));
  if (roots !== null && root === undefined) {
    throw new CloneError(
      'TARGET_OUTSIDE_DATA_ROOTS',
      `${path} does not lie below a data root of this host`,
      {
        facts: { path, resolvesTo: real, dataRoots: roots.join(', ') },
        hint: 'Choose a directory below one of the data roots, or let the operator of the host add one to worker.dataRoots.',
      },
    );
  }
  if (real === '/') throw invalid(path, 'the root directory cannot be a target');
  if (
    relative(root ?? dirname(real), real)
      .split('/')
      .some((part) => part.startsWith('.'))
  )
    throw invalid(path, 'a directory whose name begins with a dot cannot be a target');
  for (const ours of await realPaths(options.protectedPaths)) {
    if (isWithin(real, ours) || isWithin(ours, real))
      throw invalid(path, `the target overlaps ${ours}, which pgcloned itself needs`);
  }
  for (let above = dirname(real); above !== '/'; above = dirname(above)) {
    if (await isDataDirectory(above))
      throw invalid(path, `the target lies inside the data directory ${above}`);
    if (VERSION_DIRECTORY.test(basename(above)) || (await exists(join(above, 'archive_status'))))
      throw invalid(path, `the target lies inside ${above}, a part of a cluster`);
  }
}

/** Directories of one clone must not lie in each other, or one would be deleted with the other. */
export function refuseNesting(paths: readonly string[]): void {
  for (const [index, one] of paths.entries()) {
    for (const other of paths.slice(index + 1)) {
      if (isWithin(one, other) || isWithin(other, one))
        throw invalid(one, `${one} and ${other} lie in each other`);
    }
  }
}

export type DirectoryState = 'absent' | 'empty' | 'unfinished' | 'data-directory' | 'foreign';

/** What is there now. `lost+found` of a mount point does not count. */
export async function inspectDirectory(path: string, kind: DirectoryKind): Promise<DirectoryState> {
  let names: readonly string[];
  try {
    names = await readdir(path);
  } catch (error) {
    const code = codeOf(error);
    if (code === 'ENOENT') return 'absent';
    if (code === 'ENOTDIR') throw invalid(path, `${path} is not a directory`);
    if (code === 'EACCES') throw notWritable(path, path);
    throw error;
  }
  // A clone that is killed while it marks the directory leaves this and nothing else.
  const begun = await unfinishedWrites(markerPath(path, kind));
  const isUnfinished = (await unfinishedCloneIn(path, kind)) !== null;
  if (names.every((name) => name === LOST_AND_FOUND || begun.includes(join(path, name))))
    // An empty directory of a tablespace is the server's, unless it is ours: its marker stands beside it.
    return kind === 'tablespace' && (isUnfinished || begun.length > 0) ? 'unfinished' : 'empty';
  if (isUnfinished) return 'unfinished';
  return kind === 'data' && (await isDataDirectory(path)) ? 'data-directory' : 'foreign';
}

async function isDataDirectory(path: string): Promise<boolean> {
  return (await exists(join(path, 'PG_VERSION'))) && (await exists(join(path, 'global')));
}

/** The real path of a directory that may be yet to be made: that of its deepest existing ancestor plus the rest. */
export async function resolveReal(
  path: string,
): Promise<{ readonly existing: string; readonly real: string }> {
  const rest: string[] = [];
  for (let existing = path; ; existing = dirname(existing)) {
    if ((await lstat(existing).catch(() => null)) === null) {
      rest.unshift(basename(existing));
      continue;
    }
    try {
      const real = await realpath(existing);
      return { existing: real, real: join(real, ...rest) };
    } catch (cause) {
      throw new CloneError('TARGET_INVALID', `${existing} is a link that leads nowhere`, {
        facts: { path },
        hint: 'Remove the link, or make the directory that it points to.',
        cause,
      });
    }
  }
}

/** @returns False if it is gone. */
async function isWritableDirectory(path: string, existing: string): Promise<boolean> {
  try {
    if (!(await stat(existing)).isDirectory())
      throw invalid(path, `${existing} is not a directory`);
    await access(existing, constants.W_OK | constants.X_OK);
    return true;
  } catch (error) {
    if (error instanceof CloneError) throw error;
    if (codeOf(error) === 'ENOENT') return false;
    throw notWritable(path, existing, error);
  }
}

function notWritable(path: string, directory: string, cause?: unknown): CloneError {
  const readOnly = codeOf(cause) === 'EROFS';
  return new CloneError('TARGET_NOT_WRITABLE', `${directory} cannot be written`, {
    facts: { path, directory, readOnlyFilesystem: readOnly },
    hint: readOnly
      ? 'Mount the filesystem read-write, or choose another target.'
      : `Make ${directory} belong to the user that runs the worker.`,
    cause,
  });
}

async function realPaths(paths: readonly string[]): Promise<readonly string[]> {
  return await Promise.all(
    paths.map(async (path) => await realpath(path).catch(() => path.replace(/(.)\/+$/, '$1'))),
  );
}

function invalid(path: string, message: string): CloneError {
  return new CloneError('TARGET_INVALID', message, {
    facts: { path },
    hint: 'Choose another directory for the clone.',
  });
}
