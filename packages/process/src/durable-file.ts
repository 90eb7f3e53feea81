/** Files that are either the old or the new version after a crash, never a torn one. */
import { open, rename } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Writes beside `path`, syncs, renames over it and syncs the directory. */
export async function writeDurably(
  path: string,
  content: string | Buffer,
  { mode = 0o600 }: { readonly mode?: number } = {},
): Promise<void> {
  const temporary = `${path}.tmp`;
  {
    await using file = await open(temporary, 'w', mode);
    await file.writeFile(content);
    await file.sync();
  }
  await rename(temporary, path);
  await syncDirectory(dirname(path));
}

export async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path, 'r');
  await directory.sync();
}
