/**
 * Exclusive locks on files, held by an open file description.
 *
 * Node has no flock(2), so `flock` of util-linux takes the lock on a descriptor that it inherits from us: the lock
 * belongs to the open file, and so to us and to every child that is given the descriptor, until the last copy is closed.
 * No pid can be reused and no stale file can deceive. A lock file is never unlinked while others may open it.
 */
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { runProcess } from './child-process.ts';
import { codeOf } from './system-error.ts';

const STATUS_LOCKED_BY_ANOTHER = 75;

export interface FileLock extends AsyncDisposable {
  readonly path: string;
  /** For children that must keep the lock alive (`Command.inheritedFds`). */
  readonly fd: number;
  readonly file: FileHandle;
}

/**
 * @param waitMs How long another holder may take to let go; 0: do not wait.
 * @returns Null if another open file description holds the lock.
 */
export async function lockFile(
  path: string,
  { signal, waitMs = 0 }: { readonly signal: AbortSignal; readonly waitMs?: number },
): Promise<FileLock | null> {
  const file = await openOrCreate(path);
  try {
    const { status } = await runProcess(
      {
        file: 'flock',
        args: [
          '--exclusive',
          '--conflict-exit-code',
          String(STATUS_LOCKED_BY_ANOTHER),
          ...(waitMs === 0 ? ['--nonblock'] : ['--wait', String(waitMs / 1000)]),
          '3',
        ],
        env: {},
        inheritedFds: [file.fd],
      },
      { signal, accept: [0, STATUS_LOCKED_BY_ANOTHER] },
    );
    if (status === STATUS_LOCKED_BY_ANOTHER) {
      await file.close();
      return null;
    }
    return {
      path,
      fd: file.fd,
      file,
      [Symbol.asyncDispose]: async () => {
        await file.close();
      },
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR } = constants;

/** The directory may be everybody's: a link or a pipe in the place of the lock file is a trap. */
const SAFELY = O_NOFOLLOW | O_NONBLOCK;

async function openOrCreate(path: string): Promise<FileHandle> {
  const existing = await openExisting(path);
  if (existing !== null) return existing;
  try {
    const file = await open(path, O_RDWR | O_CREAT | O_EXCL | SAFELY, 0o644);
    // Whatever our umask: who cannot open the file is not excluded by the lock but stopped by an error.
    await file.chmod(0o644);
    return file;
  } catch (error) {
    const theirs = codeOf(error) === 'EEXIST' ? await openExisting(path) : null;
    if (theirs === null) throw error;
    return theirs;
  }
}

/**
 * Without O_CREAT, which the kernel refuses for a file of another user in a sticky directory (fs.protected_regular), and
 * for reading where we may not write: a lock needs no more.
 */
async function openExisting(path: string): Promise<FileHandle | null> {
  try {
    return await openRegular(path, O_RDWR);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return null;
    if (codeOf(error) === 'EACCES') return await openRegular(path, O_RDONLY);
    throw error;
  }
}

async function openRegular(path: string, access: number): Promise<FileHandle> {
  const file = await open(path, access | SAFELY);
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new Error(`${path} is not a regular file`);
}
