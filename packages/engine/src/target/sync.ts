/** Bringing what was written to the disk: syncfs(2), which since Linux 5.8 also reports failed writes (R8.1). */
import { stat } from 'node:fs/promises';
import { runProcess } from '@pgcloned/process';

/** syncfs(2) heeds no signal, and what it has to say it says once: whoever did not listen would never know. */
const unaborted = new AbortController().signal;

/**
 * Syncs each filesystem that one of the paths lies on, once.
 *
 * @throws {CloneError} `PROCESS_FAILED` if writes were lost: no later call tells of them.
 * @throws The signal's reason if it aborts before the next filesystem.
 */
export async function syncFilesystems(
  paths: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const byDevice = new Map<number, string>();
  for (const path of paths) byDevice.set((await stat(path)).dev, path);
  for (const path of byDevice.values()) {
    signal.throwIfAborted();
    await runProcess(
      { file: 'sync', args: ['--file-system', path], env: {} },
      { signal: unaborted },
    );
  }
}
