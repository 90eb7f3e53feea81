/** Where a program lies, asked before it is started: afterwards only the text of an error could tell. */
import { constants } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import { resolve } from 'node:path';

/** @returns The first executable file of that name, as execvp(3) would find it; null if there is none. */
export async function findProgram(
  file: string,
  { path, cwd = '.' }: { readonly path: string; readonly cwd?: string | undefined },
): Promise<string | null> {
  const candidates = file.includes('/')
    ? [resolve(cwd, file)]
    : path.split(':').map((directory) => resolve(cwd, directory, file));
  for (const candidate of candidates) {
    if (await isExecutable(candidate)) return candidate;
  }
  return null;
}

async function isExecutable(file: string): Promise<boolean> {
  try {
    await access(file, constants.X_OK);
    return (await stat(file)).isFile();
  } catch {
    // Absent or out of our reach: not a program that we can start, whatever the reason.
    return false;
  }
}
