/**
 * Phase 8 of 8: the standby runs, or whoever shall start it is waited for, and only then the source may remove the WAL
 * that it needs (R5.7).
 *
 * What is waited for is proven by the source (`pg_stat_replication`) and by the clone's own pg_control, so no login on
 * the clone is needed. A replica that was started is nobody's child: it survives us, and a failure here leaves it as it
 * is, with its directory named.
 */
import { readFile, rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, type Verdict } from '@pgcloned/contract';
import {
  isServerRunning,
  type StandbyStatus,
  standbyStatus,
  walBytesBetween,
} from '@pgcloned/postgres';
import { quoteForShell } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { bootClone } from '../replica/boot.ts';
import { clusterNameOf } from '../replica/configure.ts';
import { type Recovery, readRecovery, startupActivity } from '../replica/recovery.ts';
import { startLogOf, startReplicaServer } from '../replica/start-server.ts';
import type { Published } from './publish.ts';
import type { Stop } from './stop-backup.ts';
import type { WalStream } from './stream-wal.ts';

const POLL_INTERVAL_MS = 50;
/** A standby whose WAL is gone asks for it again and again: coming and going between the same states is no progress. */
const MARKS_KEPT = 20;

interface Done {
  readonly stream: WalStream;
  readonly stop: Stop;
  readonly published: Published;
}

/** @returns What became of `verification.boot`. */
export async function startReplica(run: CloneRun, ready: Ready, done: Done): Promise<Verdict> {
  const { replica, verification } = run.plan.spec;
  let boot: Verdict = 'skipped';
  try {
    if (verification.boot) boot = await bootClone(run, ready, done.stop);
    if (replica.start) await start(run, ready);
    if (replica.waitFor !== 'files') await waitForReplica(run, ready, done);
  } catch (error) {
    // It may be wanted back now.
    for (const { old } of done.published.places) if (old !== null) leaveReplaced(run, old);
    throw error;
  }
  await done.stream.pin?.release();
  await removeReplaced(run, done.published);
  return boot;
}

async function start(run: CloneRun, ready: Ready): Promise<void> {
  const { port } = await startReplicaServer({
    host: run.plan.host,
    binDirectory: ready.binDirectory,
    dataDirectory: ready.data.final,
    configFile: ready.hostConfiguration,
    major: ready.facts.major,
    signal: run.signal,
  });
  run.observer.instance({ state: 'running', port });
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

/** The old set goes when the new one serves, and not before. */
async function removeReplaced(run: CloneRun, { places }: Published): Promise<void> {
  for (const { old } of places) {
    if (old === null) continue;
    try {
      await rm(old, { recursive: true });
    } catch (error) {
      run.observer.log('warn', 'what was replaced could not be removed', {
        path: old,
        reason: String(error),
      });
      leaveReplaced(run, old);
    }
  }
}

function leaveReplaced({ observer }: CloneRun, old: string): void {
  observer.leftover({ what: `replaced directory ${old}`, remedy: `rm -r ${quoteForShell(old)}` });
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

const LOG_LINES_SHOWN = 20;

async function logTail(path: string): Promise<string> {
  // Without a log there is nothing to quote; the error says enough without it.
  const text = await readFile(path, 'utf8').catch(() => '');
  return text.trimEnd().split('\n').slice(-LOG_LINES_SHOWN).join('\n');
}
