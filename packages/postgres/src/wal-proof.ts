/**
 * Proves that the collected WAL leads from the start of a backup to its end.
 *
 * That the last file is there says nothing about those before it, so every record is read, as `pg_verifybackup` does: a
 * missing file, a truncated one and a single zeroed page are found (R4.13).
 */
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { describeExit, runProcess } from '@pgcloned/process';

/**
 * @param o.stopLsn Where the copy becomes consistent.
 * @throws {CloneError} `WAL_INCOMPLETE` with the words of pg_waldump, `STALLED`, `TOOL_MISSING`.
 */
export async function proveWal({
  binDirectory,
  directory,
  timeline,
  startLsn,
  stopLsn,
  stallMs,
  signal,
}: {
  readonly binDirectory: string;
  readonly directory: string;
  readonly timeline: number;
  readonly startLsn: string;
  readonly stopLsn: string;
  /** How long pg_waldump may do nothing, in milliseconds; reading takes as long as it takes. */
  readonly stallMs: number;
  readonly signal: AbortSignal;
}): Promise<void> {
  const exit = await runProcess(
    {
      file: join(binDirectory, 'pg_waldump'),
      args: [
        '--quiet',
        `--path=${directory}`,
        `--timeline=${String(timeline)}`,
        `--start=${startLsn}`,
        `--end=${stopLsn}`,
      ],
      env: { LC_ALL: 'C' },
    },
    { signal, stallMs, accept: 'any' },
  );
  if (exit.status === 0) return;
  throw new CloneError('WAL_INCOMPLETE', `the WAL from ${startLsn} to ${stopLsn} has a hole`, {
    facts: {
      directory,
      timeline,
      startLsn,
      stopLsn,
      exit: describeExit(exit),
      reason: exit.stderr,
    },
    hint: 'Clone again; if it happens again, check the disk of the target and the log of the source.',
  });
}
