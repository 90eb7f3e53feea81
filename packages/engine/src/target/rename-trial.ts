/**
 * Whether a directory can be moved aside, found out by doing it. What filesystems say of themselves does not tell: overlayfs
 * moves no directory that a lower layer has, XFS none into the tree of another project, and nobody one that something is
 * mounted on, be it of the same filesystem.
 */
import { mkdir, mkdtemp, rename, rmdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { codeOf } from '@pgcloned/process';

/** Which of the two it says depends on the filesystem. */
const ONLY_OCCUPIED: readonly (string | null)[] = ['ENOTEMPTY', 'EEXIST'];

/**
 * Asks for a rename onto a directory that is not empty, which is refused in any case: for that reason alone where nothing else
 * stands against it.
 *
 * @param directory Its parent must be writable.
 * @returns The code of the kernel's reason; null: it can be moved.
 */
export async function whyUnmovable(directory: string): Promise<string | null> {
  const trial = await mkdtemp(join(dirname(directory), '.pgcloned-trial-'));
  const occupant = join(trial, 'occupied');
  try {
    await mkdir(occupant);
    await rename(directory, trial);
  } catch (error) {
    const code = codeOf(error);
    // Never with what is in it: it holds nothing but what was made here.
    await rmdir(occupant);
    await rmdir(trial);
    return ONLY_OCCUPIED.includes(code) ? null : code;
  }
  // A filesystem that keeps to no rule: what it has moved goes back.
  await rename(trial, directory);
  return null;
}
