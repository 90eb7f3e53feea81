/**
 * Files that are either the old or the new version after a crash, never a torn one.
 *
 * A crash may leave a `.tmp` file beside the real one; nothing reads it, and `unfinishedWrites` finds it.
 */
import { randomBytes } from 'node:crypto';
import { open, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

const TEMPORARY = /^[0-9a-f]{12}\.tmp$/;

/**
 * Writes beside `path`, syncs, renames over it and syncs the directory.
 *
 * @param mode Of the file, whatever the umask or the mode of an earlier version.
 */
export async function writeDurably(
  path: string,
  content: string | Buffer,
  { mode = 0o600 }: { readonly mode?: number } = {},
): Promise<void> {
  // A name of its own, so that two writers at once do not share a half-written file, and O_EXCL, so that nobody can have
  // put a link or a readable file there for a secret to fall into.
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  try {
    {
      await using file = await open(temporary, 'wx', 0o600);
      await file.writeFile(content);
      await file.chmod(mode);
      await file.sync();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
  await syncDirectory(dirname(path));
}

/** What writes of `path` that were killed have left beside it. Its directory must exist. */
export async function unfinishedWrites(path: string): Promise<readonly string[]> {
  const directory = dirname(path);
  const prefix = `${basename(path)}.`;
  const names = await readdir(directory);
  return names
    .filter((name) => name.startsWith(prefix) && TEMPORARY.test(name.slice(prefix.length)))
    .map((name) => join(directory, name));
}

/** Makes what was created, renamed or removed in a directory survive a crash. */
export async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path, 'r');
  await directory.sync();
}
