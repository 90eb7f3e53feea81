/** Bringing what was written to the disk: syncfs(2), which since Linux 5.8 also reports failed writes (R8.1). */
import { stat } from 'node:fs/promises';
import { runProcess } from '@pgcloned/process';

/** Syncs each filesystem that one of the paths lies on, once. */
export async function syncFilesystems(
  paths: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const byDevice = new Map<number, string>();
  for (const path of paths) byDevice.set((await stat(path)).dev, path);
  for (const path of byDevice.values()) {
    await runProcess({ file: 'sync', args: ['--file-system', path], env: {} }, { signal });
  }
}
