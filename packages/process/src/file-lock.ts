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

/**
 * A file of another user in a sticky directory may be opened but not with O_CREAT (fs.protected_regular), and a lock
 * needs no right to write.
 */
async function openOrCreate(path: string): Promise<FileHandle> {
  for (const flags of [
    constants.O_RDWR,
    constants.O_RDONLY,
    constants.O_RDWR | constants.O_CREAT,
  ]) {
    try {
      return await open(path, flags, 0o644);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT' && flags !== (constants.O_RDWR | constants.O_CREAT)) continue;
      if (code === 'EACCES' && flags === constants.O_RDWR) continue;
      throw error;
    }
  }
  throw new Error(`cannot open ${path}`);
}
