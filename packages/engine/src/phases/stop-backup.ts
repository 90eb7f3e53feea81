/**
 * Phase 5 of 8: pg_control is fetched, then the source notes where the copy becomes consistent.
 *
 * pg_control comes after all other files and before the end of the backup (R2.1), and is kept in memory: on disk it would
 * make the copy startable (R2.5). Promises: it is whole (R2.3), of this cluster, and not older than the start (R2.4);
 * and the copied tablespaces are those of the backup (R1.9).
 */
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import {
  type BackupStart,
  type BackupStop,
  CONTROL_FILE_BYTES,
  CONTROL_STATE,
  type ControlFile,
  isInRecovery,
  parseTablespaceMap,
  promoted,
  readControlFile,
  readTablespaces,
  stopBackup as stop,
  walBytesBetween,
} from '@pgcloned/postgres';
import { readRemoteFile } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { makeReplicaSlot } from '../replica/slot.ts';
import type { Copy } from './copy-files.ts';

export interface Stop {
  /** The copy becomes consistent here: all WAL up to this position is needed. */
  readonly stopLsn: string;
  readonly label: Buffer;
  readonly controlImage: Buffer;
}

export async function stopBackup(
  run: CloneRun,
  ready: Ready,
  start: BackupStart,
  copy: Copy,
): Promise<Stop> {
  const { signal } = run;
  const { image, controlFile } = await readControlFile(
    async () => {
      const path = join(ready.facts.dataDirectory, 'global', 'pg_control');
      const read = await readRemoteFile(ready.host.runner(), {
        path,
        bytesMax: CONTROL_FILE_BYTES,
        signal,
      });
      if (read === null) throw invalid('pg_control is missing on the source', { path });
      return read;
    },
    { signal },
  );
  const isStandby = start.replayedTimeline !== null;
  // A standby that was promoted just now has the pg_control of a primary.
  if (isStandby && !(await isInRecovery(ready.session, signal))) throw promoted(ready.session);
  refuseForeignControlFile(controlFile, ready, start);
  const { slot } = run.plan.spec.replica;
  if (slot !== null) await makeReplicaSlot(run, { ...ready, slotName: slot });
  const backup = await stop(ready.session, start, signal);
  await ready.promotion?.end();
  if (isStandby) refuseOtherTimelines(start, backup, controlFile);
  const tablespacesAfter = await readTablespaces(ready.session, signal);
  refuseOtherTablespaces(
    copy,
    parseTablespaceMap(backup.tablespaceMap).map(({ oid }) => oid),
    tablespacesAfter.map(({ oid }) => oid),
  );
  // Of a standby, recovery of the copy takes what its pg_control says for the end of the backup (R2.2).
  const stopLsn = isStandby ? later(backup.stopLsn, controlFile.minRecoveryLsn) : backup.stopLsn;
  return { stopLsn, label: backup.label, controlImage: image };
}

const later = (one: string, other: string) =>
  walBytesBetween({ from: one, to: other }) > 0n ? other : one;

/** R3.7: files that were changed by WAL of another timeline than that of the start. */
function refuseOtherTimelines(
  { timeline }: BackupStart,
  backup: BackupStop,
  { minRecoveryTimeline }: ControlFile,
): void {
  // One that was promoted right after the end replays none any more, which is no harm.
  const others = [backup.timeline, backup.replayedTimeline ?? timeline, minRecoveryTimeline];
  const other = others.find((one) => one !== timeline);
  if (other === undefined) return;
  throw new CloneError('SOURCE_CHANGED', 'the source changed its timeline during the copy', {
    facts: { timeline, timelineNow: other },
    hint: 'Clone again: a copy by rsync is kept. If this happens again, run CHECKPOINT on the primary of the source first.',
  });
}

function refuseForeignControlFile(
  { systemIdentifier, state, checkpointLsn }: ControlFile,
  { facts }: Ready,
  { startLsn, replayedTimeline }: BackupStart,
): void {
  const expectedState =
    replayedTimeline === null ? CONTROL_STATE.inProduction : CONTROL_STATE.inArchiveRecovery;
  const isFresh = walBytesBetween({ from: startLsn, to: checkpointLsn }) >= 0n;
  if (systemIdentifier === facts.systemIdentifier && state === expectedState && isFresh) return;
  throw invalid('pg_control is not that of the running source', {
    systemIdentifier,
    expectedSystemIdentifier: facts.systemIdentifier,
    state,
    expectedState,
    checkpointLsn,
    startLsn,
  });
}

/** R1.9: a tablespace that is missing in the copy would show only when it is read. R1.10: a new one needs a directory. */
function refuseOtherTablespaces(
  { tablespaces }: Copy,
  inMap: readonly string[],
  after: readonly string[],
): void {
  const copied = new Set(tablespaces.map(({ oid }) => oid));
  const missing = [...inMap, ...after].filter((oid) => !copied.has(oid));
  const surplus = [...copied].filter((oid) => !inMap.includes(oid));
  if (missing.length === 0 && surplus.length === 0) return;
  throw new CloneError('SOURCE_CHANGED', 'tablespaces were created or dropped during the copy', {
    facts: { notCopied: missing.join(', '), copiedInVain: surplus.join(', ') },
    hint: 'Clone again, and add a mapping for each new tablespace.',
  });
}

function invalid(
  message: string,
  facts: Readonly<Record<string, string | number | null>>,
): CloneError {
  return new CloneError('CONTROL_FILE_INVALID', message, {
    facts,
    hint: 'Check host, port and ssh.host of the source, and that its data directory is not a stale mount.',
  });
}
