/**
 * Phase 3 of 8: the source notes where recovery of the copy must begin.
 *
 * Promises: the stream covers that position (R5.6). From here on the backup lives and dies with its session (R3.1), so
 * there is nothing to undo but to close it.
 */
import { CloneError } from '@pgcloned/contract';
import {
  type BackupStart,
  promoted,
  startBackup as start,
  walBytesBetween,
} from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { openStream, type WalStream } from './stream-wal.ts';

export interface Start extends BackupStart {
  readonly stream: WalStream;
}

/** @param pinned The stream that runs already; null in unpinned mode, where it begins here. */
export async function startBackup(
  run: CloneRun,
  ready: Ready,
  pinned: WalStream | null,
): Promise<Start> {
  // Nobody can see how far a checkpoint is: it may take as long as its backend lives, but not without a word.
  const slow = setTimeout(() => {
    run.observer.waiting('the checkpoint on the source with which the backup begins');
  }, run.plan.host.stallMs);
  const backup = await start(ready.session, {
    label: `pgcloned ${run.plan.id}`,
    fast: true,
    signal: run.signal,
  }).finally(() => {
    clearTimeout(slow);
  });
  run.observer.wal({ startLsn: backup.startLsn });
  if (ready.facts.inRecovery && backup.replayedTimeline === null) throw promoted(ready.session);
  refuseOlderTimeline(backup);
  const { startLsn, timeline } = backup;
  const stream =
    pinned ??
    (await openStream(run, ready, { pin: null, seedLsn: startLsn, seedTimeline: timeline }));
  const isCovered = walBytesBetween({ from: stream.seedLsn, to: startLsn }) >= 0n;
  if (timeline === ready.facts.timeline && isCovered) return { ...backup, stream };
  throw new CloneError('SOURCE_CHANGED', 'the backup does not start within the WAL stream', {
    facts: {
      startLsn,
      streamLsn: stream.seedLsn,
      timeline,
      streamTimeline: ready.facts.timeline,
    },
    hint: 'Clone again; the source changed its timeline in this very moment.',
  });
}

/**
 * R3.7: a standby that has followed its upstream to a new timeline starts its backup on the old one as long as it has seen
 * no checkpoint of the new one.
 */
function refuseOlderTimeline({ startLsn, timeline, replayedTimeline }: BackupStart): void {
  if (replayedTimeline === null || replayedTimeline === timeline) return;
  throw new CloneError(
    'SOURCE_CHANGED',
    `the source follows timeline ${String(replayedTimeline)} and has not seen a checkpoint of it yet`,
    {
      facts: { startLsn, timeline, replayedTimeline },
      hint: 'Run CHECKPOINT on the primary of the source, or wait for its next one.',
    },
  );
}
