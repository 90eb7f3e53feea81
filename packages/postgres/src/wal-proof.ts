/**
 * Proves that the collected WAL leads from the start of a backup to its end.
 *
 * That the last file is there says nothing about those before it, so every record is read, as `pg_verifybackup` does: a
 * missing file, a truncated one and a single zeroed page are found (R4.13).
 */
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { describeExit, runProcess } from '@pgcloned/process';
import { segmentName } from './wal-segment.ts';

/**
 * @param o.stopLsn Where the copy becomes consistent.
 * @throws {CloneError} `WAL_INCOMPLETE` with file, position and the words of pg_waldump, `STALLED`, `TOOL_MISSING`.
 */
export async function proveWal({
  binDirectory,
  directory,
  timeline,
  startLsn,
  stopLsn,
  segmentBytes,
  stallMs,
  signal,
}: {
  readonly binDirectory: string;
  readonly directory: string;
  readonly timeline: number;
  readonly startLsn: string;
  readonly stopLsn: string;
  readonly segmentBytes: number;
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
  const { lsn, segment } = placeOf(exit.stderr, { timeline, segmentBytes });
  const where = [lsn && `at ${lsn}`, segment && `in ${segment}`].filter(Boolean).join(' ');
  throw new CloneError(
    'WAL_INCOMPLETE',
    where === ''
      ? `the WAL from ${startLsn} to ${stopLsn} has a hole`
      : `the WAL from ${startLsn} to ${stopLsn} is missing or damaged ${where}`,
    {
      facts: {
        directory,
        timeline,
        startLsn,
        stopLsn,
        lsn,
        segment,
        exit: describeExit(exit),
        reason: exit.stderr,
      },
      hint: 'Clone again; if it happens again, check the disk of the target and the log of the source.',
    },
  );
}

/** Where pg_waldump got stuck: the record, and the file of which it speaks, else that in which the record begins. */
function placeOf(
  said: string,
  { timeline, segmentBytes }: { readonly timeline: number; readonly segmentBytes: number },
): { readonly lsn: string | null; readonly segment: string | null } {
  const lsn = /.*\b(?:at|after) ([0-9A-F]{1,8}\/[0-9A-F]{1,8})\b/s.exec(said)?.[1] ?? null;
  const named = /\b[0-9A-F]{24}\b/.exec(said)?.[0] ?? null;
  return {
    lsn,
    segment: named ?? (lsn === null ? null : segmentName({ timeline, lsn, segmentBytes })),
  };
}
