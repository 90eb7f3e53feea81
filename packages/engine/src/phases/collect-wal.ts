/**
 * Phase 6 of 8: the WAL from the start to the end of the backup is here, without a hole.
 *
 * On a primary the end of the backup closes its segment, so a complete segment tells that it has come (R3.5). A standby
 * closes none, and an idle upstream may not for hours, so there the position that was received counts. That the last one is
 * here says nothing about the others: pg_waldump reads every record between (R4.13). With method reflink nothing has flowed:
 * the segments are taken from the source's own pg_wal.
 */
import { type BackupStart, keepUnfinishedSegment, proveWal } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import { takeWal } from '../copy/take-wal.ts';
import type { Ready } from '../ready.ts';
import type { Stop } from './stop-backup.ts';
import type { WalStream } from './stream-wal.ts';

export async function collectWal(
  run: CloneRun,
  ready: Ready,
  {
    stream,
    start,
    stop,
  }: { readonly stream: WalStream; readonly start: BackupStart; readonly stop: Stop },
): Promise<void> {
  if (stream.receiver === null) {
    await takeWal(run, ready, { ...stream, start, stop });
    stream.pin?.streamEnded(stop.stopLsn);
  } else {
    await endStream(run, ready, { ...stream, receiver: stream.receiver, start, stop });
  }
  await stream.space.stop();
  run.observer.wal({ receivedLsn: stop.stopLsn });
  await proveWal({
    binDirectory: ready.binDirectory,
    directory: stream.directory,
    timeline: start.timeline,
    startLsn: start.startLsn,
    stopLsn: stop.stopLsn,
    segmentBytes: ready.facts.walSegmentBytes,
    stallMs: run.plan.host.stallMs,
    signal: run.signal,
  });
}

async function endStream(
  run: CloneRun,
  { facts }: Ready,
  {
    pin,
    directory,
    receiver,
    start,
    stop,
  }: Pick<WalStream, 'pin' | 'directory'> & {
    readonly receiver: NonNullable<WalStream['receiver']>;
    readonly start: BackupStart;
    readonly stop: Stop;
  },
): Promise<void> {
  // A receiver that ends aborts the run by itself.
  if (facts.inRecovery) await receiver.waitUntilReceived(stop.stopLsn, run.signal);
  else await receiver.waitUntilComplete(stop.stopLsn, run.signal);
  await receiver.stop(run.signal);
  // Before the last segment gets a name by which it counts as complete.
  pin?.streamEnded(stop.stopLsn);
  if (facts.inRecovery) {
    await keepUnfinishedSegment(directory, {
      timeline: start.timeline,
      endLsn: stop.stopLsn,
      segmentBytes: facts.walSegmentBytes,
    });
  }
}
