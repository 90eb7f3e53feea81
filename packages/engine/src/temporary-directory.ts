/**
 * A directory for what a preflight needs for some seconds, in the temporary directory of this host: nothing is known yet of
 * the target, or it is not to be touched.
 */
import { lstat, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const PREFIX = 'pgcloned-preflight-';
/** A preflight takes no more than a minute; what is older was left by one that was killed. */
const DEAD_AFTER_MS = 600_000;

export interface TemporaryDirectory extends AsyncDisposable {
  readonly path: string;
}

/** Of mode 0700, and removed with all that is in it. What killed processes have left is removed as well. */
export async function makeTemporaryDirectory(): Promise<TemporaryDirectory> {
  await removeDead();
  const path = await mkdtemp(join(tmpdir(), PREFIX));
  return {
    path,
    [Symbol.asyncDispose]: async () => {
      await rm(path, { recursive: true, force: true });
    },
  };
}

async function removeDead(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    if (!name.startsWith(PREFIX)) continue;
    const path = join(tmpdir(), name);
    const found = await lstat(path).catch(() => null);
    const isOurs = found?.isDirectory() === true && found.uid === process.getuid?.();
    if (isOurs && found.mtimeMs < Date.now() - DEAD_AFTER_MS)
      await rm(path, { recursive: true, force: true });
  }
}
