/**
 * Phase 8 of 8: the clone runs, or whoever shall start it is waited for. Of a standby the source may only then remove the
 * WAL that it needs (R5.7); a detached clone is one of its own by then (R9.2).
 *
 * What is waited for is proven by the source (`pg_stat_replication`) and by the clone's own pg_control, so no login on
 * the clone is needed. A replica that was started is nobody's child: it survives us, and a failure here leaves it as it
 * is, with its directory named.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, type Verdict } from '@pgcloned/contract';
import {
  type BackupStart,
  isServerRunning,
  logTail,
  type PostmasterPid,
  readTablespaces,
  type StandbyStatus,
  standbyStatus,
  walBytesBetween,
} from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { sharedTablespaces } from '../replica/beside-source.ts';
import { clusterNameOf } from '../replica/configure.ts';
import { isDetached, settleDetached } from '../replica/detached.ts';
import { type Recovery, readRecovery, startupActivity } from '../replica/recovery.ts';
import { startLogOf, startReplicaServer } from '../replica/start-server.ts';
import { tryPrivately, unpromoted } from '../replica/try-privately.ts';
import { findReplaced, leftoversOf, type ReplacedSet, removeReplaced } from '../target/replaced.ts';
import type { Copy } from './copy-files.ts';
import type { Published } from './publish.ts';
import type { Stop } from './stop-backup.ts';
import type { WalStream } from './stream-wal.ts';

const POLL_INTERVAL_MS = 50;
/** Only files of this host are looked at. */
const PROMOTION_POLL_MS = 20;
/** A standby whose WAL is gone asks for it again and again: coming and going between the same states is no progress. */
const MARKS_KEPT = 20;

interface Done {
  readonly stream: WalStream;
  readonly start: BackupStart;
  readonly stop: Stop;
  readonly copy: Copy;
  readonly published: Published;
}

export interface Started {
  /** What became of `verification.boot`. */
  readonly boot: Verdict;
  /** Null: it was not started. */
  readonly connectionString: string | null;
}

export async function startReplica(run: CloneRun, ready: Ready, done: Done): Promise<Started> {
  const { replica } = run.plan.spec;
  const detached = isDetached(run.plan);
  let boot: Verdict = 'skipped';
  let connectionString: string | null = null;
  try {
    boot = done.published.boot ?? (await tryPrivately(run, ready, done.stop));
    if (replica.start) {
      if (!detached) await refuseNewTablespaces(run, ready, done.copy);
      connectionString = await start(run, ready);
    }
    if (detached && (replica.start || replica.waitFor !== 'files'))
      await waitForPromotion(run, ready, done);
    else if (replica.waitFor !== 'files') await waitForReplica(run, ready, done);
  } catch (error) {
    // It may be wanted back now.
    const { places } = done.published;
    for (const set of await findReplaced(ready.data.final, places).catch(() => []))
      if (set.cloneId === run.plan.id) leaveReplaced(run.observer, set);
    throw error;
  }
  await done.stream.pin?.release();
  await removeOldSets(run, done.published, ready.data.final);
  return { boot, connectionString };
}

/**
 * R1.11: a tablespace that the source has got since the end of the backup would be replayed into the very directory of the
 * source. Later ones nobody can keep from a standby.
 */
async function refuseNewTablespaces(
  run: CloneRun,
  { sameHost, session, data }: Ready,
  { tablespaces }: Copy,
): Promise<void> {
  if (!sameHost) return;
  const now = await readTablespaces(session, run.signal);
  const added = now.filter(({ oid }) => tablespaces.every((copied) => copied.oid !== oid));
  if (added.length === 0) return;
  throw sharedTablespaces(
    data.final,
    added.map(({ name }) => name),
  );
}

async function start(run: CloneRun, ready: Ready): Promise<string> {
  const postmaster = await startReplicaServer({
    host: run.plan.host,
    binDirectory: ready.binDirectory,
    dataDirectory: ready.data.final,
    configFile: ready.hostConfiguration,
    major: ready.facts.major,
    port: ready.port,
    signal: run.signal,
  });
  run.observer.instance({ state: 'running', port: postmaster.port });
  return connectionStringOf(postmaster, ready.settings.database);
}

/** It ends up writable, or this throws; then nothing of what brought it there is left in its configuration. */
async function waitForPromotion(run: CloneRun, ready: Ready, { start }: Done): Promise<void> {
  const { replica } = run.plan.spec;
  const dataDirectory = ready.data.final;
  const wanted = replica.start ? 'writable' : replica.waitFor;
  const beganAtMs = performance.now();
  let mark = '';
  let movedAtMs = beganAtMs;
  for (;;) {
    const server = await isServerRunning(dataDirectory);
    const recovery = await readRecovery(dataDirectory, run.signal);
    const isPromoted = recovery.promotedTo !== null && recovery.promotedTo > start.timeline;
    if (isPromoted && server?.status === 'ready') {
      await settleDetached(dataDirectory);
      return;
    }
    if (wanted === 'consistent' && (isPromoted || recovery.isConsistent)) return;
    if (server === null && replica.start)
      throw unpromoted(ready, recovery, await logTail(startLogOf(ready.data.final)));
    const replaying = server === null ? null : await startupActivity(server.pid);
    const now = JSON.stringify([server?.pid, server?.status, recovery, replaying]);
    if (now !== mark) movedAtMs = performance.now();
    mark = now;
    if (server !== null && performance.now() - movedAtMs > run.plan.host.stallMs)
      throw unpromoted(ready, recovery, await logTail(startLogOf(ready.data.final)));
    if (server === null && performance.now() - beganAtMs > replica.hold * 1000)
      throw neverStarted(ready, wanted, replica.hold);
    await delay(PROMOTION_POLL_MS, undefined, { signal: run.signal });
  }
}

/** Without `start` somebody else starts it, and has `hold` seconds for that. */
async function waitForReplica(run: CloneRun, ready: Ready, { stop }: Done): Promise<void> {
  const { replica } = run.plan.spec;
  const beganAtMs = performance.now();
  const marks: string[] = [];
  let movedAtMs = beganAtMs;
  for (;;) {
    const server = await isServerRunning(ready.data.final);
    const status = await standbyStatus(ready.session, clusterNameOf(run), run.signal);
    const recovery = await readRecovery(ready.data.final, run.signal);
    if (isReached(replica.waitFor, stop.stopLsn, status, recovery)) return;
    if (server === null && replica.start) throw await died(ready);
    const replaying = server === null ? null : await startupActivity(server.pid);
    const mark = JSON.stringify([server?.pid, status, recovery, replaying]);
    if (!marks.includes(mark)) {
      marks.push(mark);
      if (marks.length > MARKS_KEPT) marks.shift();
      movedAtMs = performance.now();
    }
    const waitedMs = performance.now() - movedAtMs;
    if (server !== null && waitedMs > run.plan.host.stallMs)
      throw stalled(ready, replica.waitFor, status, recovery, waitedMs);
    if (server === null && performance.now() - beganAtMs > replica.hold * 1000)
      throw neverStarted(ready, replica.waitFor, replica.hold);
    await delay(POLL_INTERVAL_MS, undefined, { signal: run.signal });
  }
}

function isReached(
  waitFor: 'files' | 'consistent' | 'streaming' | 'writable',
  stopLsn: string,
  status: StandbyStatus | null,
  recovery: Recovery,
): boolean {
  const replayed =
    status?.replayLsn != null && walBytesBetween({ from: stopLsn, to: status.replayLsn }) >= 0n;
  if (waitFor === 'streaming') return status?.state === 'streaming' && replayed;
  return replayed || recovery.isConsistent;
}

/**
 * The old set goes when the new one serves, and not before. So does what an earlier clone had replaced here and could not
 * remove, if it was a clone of ours: twice somebody has asked for another one in its place.
 */
async function removeOldSets(
  { plan, observer }: CloneRun,
  { places }: Published,
  dataDirectory: string,
): Promise<void> {
  if (places.every(({ old }) => old === null)) return;
  for (const set of await findReplaced(dataDirectory, places)) {
    const isOwn = set.cloneId === plan.id;
    if (!isOwn && set.was === 'foreign' && !set.removalHasBegun) continue;
    try {
      await removeReplaced(set);
    } catch (error) {
      observer.log('warn', 'what was replaced could not be removed', {
        paths: set.directories.map(({ path }) => path).join(', '),
        reason: String(error),
      });
      if (isOwn) leaveReplaced(observer, set);
    }
  }
}

function leaveReplaced(observer: CloneRun['observer'], set: ReplacedSet): void {
  for (const leftover of leftoversOf(set)) observer.leftover(leftover);
}

async function died(ready: Ready): Promise<CloneError> {
  return new CloneError('REPLICA_START_FAILED', 'the replica ended while it recovered', {
    facts: { dataDirectory: ready.data.final, log: await logTail(startLogOf(ready.data.final)) },
    hint: `The clone is complete in ${ready.data.final}: mend what its log says and start it by hand.`,
  });
}

function stalled(
  ready: Ready,
  waitFor: string,
  status: StandbyStatus | null,
  recovery: Recovery,
  waitedMs: number,
): CloneError {
  return new CloneError('REPLICA_START_FAILED', `the replica does not get to ${waitFor}`, {
    facts: {
      dataDirectory: ready.data.final,
      stateAtSource: status?.state ?? null,
      replayLsn: status?.replayLsn ?? null,
      minRecoveryLsn: recovery.minRecoveryLsn,
      waitedMs: Math.round(waitedMs),
    },
    hint: `The clone runs in ${ready.data.final}: see its log, and whether pg_hba.conf of the source lets its replication user in.`,
  });
}

function neverStarted(ready: Ready, waitFor: string, holdSeconds: number): CloneError {
  return new CloneError('REPLICA_START_FAILED', `nobody started the replica for ${waitFor}`, {
    facts: { dataDirectory: ready.data.final, holdSeconds },
    hint: `The clone is complete in ${ready.data.final}; its source no longer keeps WAL for it. Start it soon, or ask for start: true.`,
  });
}

/** With the user that whoever connects has at hand: of the roles of the clone we know nothing. */
function connectionStringOf({ socketDirectory, port }: PostmasterPid, database: string): string {
  const query = new URLSearchParams({
    host: socketDirectory ?? 'localhost',
    ...(port !== null && { port: String(port) }),
  });
  return `postgresql:///${encodeURIComponent(database)}?${query.toString().replaceAll('+', '%20')}`;
}
