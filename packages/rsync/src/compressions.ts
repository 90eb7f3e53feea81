/** Which compressions an rsync knows. Those of other programs than rsync, and of before 3.2.0, name none. */
import { COMPRESSIONS, type Compression } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';

/** @param list `zstd lz4 zlibx zlib none`: the line below `Compress list:` of `rsync --version`. */
export function compressionsIn(list: string): readonly Compression[] {
  const known = list.trim().split(/\s+/);
  return COMPRESSIONS.filter(
    (compression) => compression === 'none' || known.includes(compression),
  );
}

/**
 * Those of the rsync of this host.
 *
 * @throws {CloneError} `TOOL_MISSING`.
 * @throws The signal's reason if it aborts.
 */
export async function localCompressions(signal: AbortSignal): Promise<readonly Compression[]> {
  const { stdout } = await runProcess(
    { file: 'rsync', args: ['--version'], env: { LC_ALL: 'C' } },
    { signal },
  );
  return compressionsIn(/^Compress list:\n(.*)$/m.exec(stdout.toString())?.[1] ?? '');
}
