/** Filesystems of a test's own: small ones to fill, and those that reflinks need. Mounting needs root. */
import { chown } from 'node:fs/promises';
import { join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import { partsUser } from './parts-user.ts';
import { scratchDirectory } from './scratch-directory.ts';

const TOOL_TIMEOUT_MS = 60_000;

export interface TestFilesystem extends AsyncDisposable {
  /** Where it is mounted; belongs to the parts' user. */
  readonly path: string;
  remount(mode: 'ro' | 'rw'): Promise<void>;
}

/** @param type XFS takes at least 300 MB, btrfs 109 MB, and both need the package of their tools. */
export async function mountFilesystem(o: {
  readonly type: 'tmpfs' | 'ext4' | 'xfs' | 'btrfs';
  readonly bytes: number;
  /** How many files it can hold; tmpfs only. */
  readonly inodes?: number;
}): Promise<TestFilesystem> {
  const scratch = await scratchDirectory();
  const path = join(scratch.path, 'mnt');
  const image = join(scratch.path, 'image');
  try {
    await run('mkdir', path);
    if (o.type === 'tmpfs') {
      const options = `size=${String(o.bytes)},nr_inodes=${String(o.inodes ?? 0)}`;
      await run('mount', '-t', 'tmpfs', '-o', options, 'tmpfs', path);
    } else {
      await run('truncate', '--size', String(o.bytes), image);
      await run(`/usr/sbin/mkfs.${o.type}`, '-q', image);
      // Unmounting frees the loop device.
      await run('mount', '-o', 'loop', image, path);
    }
    await chown(path, partsUser.uid, partsUser.gid);
  } catch (error) {
    await scratch[Symbol.asyncDispose]();
    throw error;
  }
  return {
    path,
    remount: async (mode) => {
      await run('mount', '-o', `remount,${mode}`, path);
    },
    [Symbol.asyncDispose]: async () => {
      // Lazily: a process of a failed test may still stand in it, and its end is not ours to wait for.
      await run('umount', '--lazy', path);
      await scratch[Symbol.asyncDispose]();
    },
  };
}

async function run(file: string, ...args: string[]): Promise<void> {
  await runProcess({ file, args, env: {} }, { signal: AbortSignal.timeout(TOOL_TIMEOUT_MS) });
}
