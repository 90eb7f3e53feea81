/** The directories of a copy, made before its files come: rsync is given files only (R6.7). */
import { chmod, mkdir } from 'node:fs/promises';
import { codeOf } from '@pgcloned/process';
import type { ByteName } from '@pgcloned/rsync';

/**
 * @param names Relative to `root`, each after its parent.
 * @param mode That of the data directory; the server derives all others from it (R6.11).
 */
export async function makeDirectories(
  root: string,
  names: readonly ByteName[],
  mode: number,
): Promise<void> {
  for (const name of names) {
    await mkdir(bytePath(root, name), { mode }).catch(async (error: unknown) => {
      if (codeOf(error) !== 'EEXIST') throw error;
      await chmod(bytePath(root, name), mode);
    });
  }
}

/** A path below `root` whose rest may be any bytes. */
export function bytePath(root: string, name: ByteName): Buffer {
  return Buffer.concat([Buffer.from(`${root}/`), Buffer.from(name, 'latin1')]);
}
