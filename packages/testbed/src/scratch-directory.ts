/**
 * Directories that end with the test.
 *
 * Their paths are short, since the path of a unix socket has at most 107 bytes, and they may be passed through (0711) but
 * not listed by others, as the home of a real server would be.
 */
import { chmod, chown, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { partsUser, runsAsRoot } from './parts-user.ts';

export interface ScratchDirectory extends AsyncDisposable {
  readonly path: string;
}

/** An empty directory that belongs to the parts' user; disposing it removes it with all that is in it. */
export async function scratchDirectory(): Promise<ScratchDirectory> {
  const path = await mkdtemp(join(tmpdir(), 'testbed-'));
  await chmod(path, 0o711);
  if (runsAsRoot) await chown(path, partsUser.uid, partsUser.gid);
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      // A process on its way out may write one more file while we remove.
      await rm(path, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}
