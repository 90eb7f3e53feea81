/**
 * The WAL of the backup from the source's own pg_wal, once the backup has ended (R10.5): the segments that hold it, and the
 * history of their timeline.
 *
 * They are whole by then: a primary has closed the last one, and a standby replays nothing that it has not flushed. They
 * share their blocks where they can; where pg_wal lies on another filesystem they are copied, since they are few.
 */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import {
  type BackupStart,
  parseLsn,
  parseSegmentHeader,
  SEGMENT_HEADER_BYTES,
  segmentStartOfName,
  segmentsBetween,
} from '@pgcloned/postgres';
import { reflinkFile } from '@pgcloned/reflink';
import { listFiles } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import type { Stop } from '../phases/stop-backup.ts';
import type { WalStream } from '../phases/stream-wal.ts';
import type { Ready } from '../ready.ts';

const HISTORY = /^([0-9A-F]{8})\.history$/;

/** @throws {CloneError} `WAL_REMOVED` if the source has one no more, `WAL_INCOMPLETE` if one is not what its name says. */
export async function takeWal(
  { signal, plan }: CloneRun,
  { facts, host }: Pick<Ready, 'facts' | 'host'>,
  {
    directory,
    start: { startLsn, timeline },
    stop: { stopLsn },
  }: Pick<WalStream, 'directory'> & { readonly start: BackupStart; readonly stop: Stop },
): Promise<void> {
  const walDirectory = join(facts.dataDirectory, 'pg_wal');
  const take = async (name: string): Promise<boolean> => {
    const files = { from: join(walDirectory, name), to: join(directory, name) };
    const { how } = await reflinkFile(files, { fallback: 'copy', signal });
    return how !== 'vanished';
  };
  const segmentBytes = facts.walSegmentBytes;
  const segments = segmentsBetween({ timeline, startLsn, endLsn: stopLsn, segmentBytes });
  for (const [index, name] of segments.entries()) {
    if (!(await take(name))) throw removed(name, walDirectory);
    await refuseOtherContents(join(directory, name), {
      name,
      facts,
      timeline,
      // Only in the first one of a timeline lies what was written on the one before.
      mayBeginEarlier: index === 0,
    });
  }
  const [listed] = await listFiles(host.runner(), {
    roots: [walDirectory],
    stallMs: plan.host.stallMs,
    signal,
  });
  for (const { name } of listed ?? []) {
    const [, digits] = HISTORY.exec(name) ?? [];
    if (digits !== undefined && Number.parseInt(digits, 16) <= timeline) await take(name);
  }
}

async function refuseOtherContents(
  path: string,
  {
    name,
    facts,
    timeline,
    mayBeginEarlier,
  }: {
    readonly name: string;
    readonly facts: Ready['facts'];
    readonly timeline: number;
    readonly mayBeginEarlier: boolean;
  },
): Promise<void> {
  await using file = await open(path, 'r');
  const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(SEGMENT_HEADER_BYTES) });
  const header = parseSegmentHeader(buffer.subarray(0, bytesRead));
  const isTimeline =
    header !== null &&
    (mayBeginEarlier ? header.timeline <= timeline : header.timeline === timeline);
  const { size } = await file.stat();
  if (
    isTimeline &&
    parseLsn(header.lsn) === segmentStartOfName(name, facts.walSegmentBytes) &&
    header.systemIdentifier === facts.systemIdentifier &&
    header.segmentBytes === facts.walSegmentBytes &&
    size === facts.walSegmentBytes
  )
    return;
  throw new CloneError('WAL_INCOMPLETE', `WAL segment ${name} is not what its name says`, {
    facts: {
      segment: name,
      bytes: size,
      lsn: header?.lsn ?? null,
      timeline: header?.timeline ?? null,
      expectedTimeline: timeline,
      systemIdentifier: header?.systemIdentifier ?? null,
    },
    hint: 'Clone again; if it happens again, see what else writes into pg_wal of the source.',
  });
}

function removed(name: string, walDirectory: string): CloneError {
  return new CloneError('WAL_REMOVED', `WAL segment ${name} is no longer on the source`, {
    facts: { segment: name, walDirectory },
    hint: 'Clone again; with wal.retention: pin the source keeps its WAL for as long as it is needed.',
  });
}
