/** What the rsync of this host says of itself. */
import { CloneError, type Compression } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import { compressionsIn } from './compressions.ts';

/**
 * `3.2.7`. Null: there is no rsync, or one that does not say it.
 *
 * @throws The signal's reason if it aborts.
 */
export async function localRsyncVersion(signal: AbortSignal): Promise<string | null> {
  try {
    return /^rsync\s+version v?([\d.]+)/.exec(await versionText(signal))?.[1] ?? null;
  } catch (error) {
    const says = error instanceof CloneError ? error.code : null;
    if (says === 'TOOL_MISSING' || says === 'PROCESS_FAILED') return null;
    throw error;
  }
}

/**
 * What it can compress with.
 *
 * @throws {CloneError} `TOOL_MISSING`.
 * @throws The signal's reason if it aborts.
 */
export async function localCompressions(signal: AbortSignal): Promise<readonly Compression[]> {
  const list = /^Compress list:\n(.*)$/m.exec(await versionText(signal))?.[1];
  return compressionsIn(list ?? '');
}

async function versionText(signal: AbortSignal): Promise<string> {
  const version = { file: 'rsync', args: ['--version'], env: { LC_ALL: 'C' } };
  return (await runProcess(version, { signal })).stdout.toString();
}
