/**
 * One file that shares its blocks with another: FICLONE, which libuv issues for `COPYFILE_FICLONE_FORCE` (R10.2).
 *
 * Promises that the file is the source at one moment, even while somebody writes it (R10.1), and that a failure leaves
 * none. `O_EXCL`, since FICLONE into a longer file would leave its end in place.
 */
import { constants, type Stats } from 'node:fs';
import { copyFile, lstat, open, rm, utimes } from 'node:fs/promises';
import { codeOf } from '@pgcloned/process';
import { copyBytes } from './copy-bytes.ts';
import { keepCopyOnWriteOfFile } from './copy-on-write.ts';
import { explainFailure, refusesToShare } from './failure.ts';
import type { FilePath } from './file-path.ts';

export interface ReflinkOptions {
  /** What to do where blocks cannot be shared: `copy` copies the bytes. */
  readonly fallback: 'fail' | 'copy';
  readonly signal: AbortSignal;
}

export type ReflinkOutcome =
  | { readonly how: 'shared' | 'copied'; readonly bytes: number }
  /** The source is gone: somebody has just removed it. */
  | { readonly how: 'vanished' };

/**
 * Makes `to`, with the mode of `from` and its times, give or take a microsecond; the owner is whoever we are.
 *
 * @throws {CloneError} `REFLINK_UNSUPPORTED` if they cannot share blocks, `TARGET_NO_SPACE`, `TARGET_NOT_WRITABLE`,
 *   `TARGET_NOT_EMPTY` if `to` exists. `to` is not there then, unless it was before.
 * @throws The signal's reason if it aborts while bytes are copied.
 */
export async function reflinkFile(
  { from, to }: { readonly from: FilePath; readonly to: FilePath },
  options: ReflinkOptions,
): Promise<ReflinkOutcome> {
  let status: Stats;
  let how: 'shared' | 'copied';
  try {
    status = await lstat(from);
    if (!status.isFile()) throw new Error(`${textOf(from)} is no regular file`);
    how = await make({ from, to, mode: status.mode & 0o7777 }, options);
  } catch (error) {
    if (codeOf(error) === 'ENOENT' && !(await exists(from))) return { how: 'vanished' };
    throw await explainFailure(error, { from: textOf(from), to: textOf(to) });
  }
  await utimes(to, seconds(status.atimeMs), seconds(status.mtimeMs));
  return { how, bytes: status.size };
}

async function make(
  file: { readonly from: FilePath; readonly to: FilePath; readonly mode: number },
  { fallback, signal }: ReflinkOptions,
): Promise<'shared' | 'copied'> {
  const { from, to } = file;
  const { COPYFILE_EXCL, COPYFILE_FICLONE_FORCE } = constants;
  try {
    await copyFile(from, to, COPYFILE_FICLONE_FORCE | COPYFILE_EXCL);
    return 'shared';
  } catch (error) {
    if (!refusesToShare(error)) throw error;
    if (codeOf(error) === 'EINVAL' && (await shareOtherwise(file, signal))) return 'shared';
    if (fallback === 'fail') throw error;
  }
  await copyBytes({ ...file, signal });
  return 'copied';
}

/**
 * A btrfs file whose copy-on-write is not that of its directory: the new one is made empty, gets it, and only then blocks.
 *
 * @returns Whether that was the reason; if not, nothing is left of it.
 */
async function shareOtherwise(
  { from, to, mode }: { readonly from: FilePath; readonly to: FilePath; readonly mode: number },
  signal: AbortSignal,
): Promise<boolean> {
  // The tools take names as text.
  if (Buffer.isBuffer(from) || Buffer.isBuffer(to)) return false;
  await (await open(to, 'wx', mode)).close();
  try {
    await keepCopyOnWriteOfFile({ from, to }, signal);
    await copyFile(from, to, constants.COPYFILE_FICLONE_FORCE);
    return true;
  } catch (error) {
    await rm(to, { force: true });
    if (refusesToShare(error) || codeOf(error) === 'PROCESS_FAILED') return false;
    throw error;
  }
}

/** Half a microsecond more, since Node cuts off what is less than one, and a binary fraction may be. */
const seconds = (ms: number) => Math.round(ms * 1_000) / 1e6 + 5e-7;

const textOf = (path: FilePath) => path.toString('utf8');

async function exists(path: FilePath): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false;
    throw error;
  }
}
