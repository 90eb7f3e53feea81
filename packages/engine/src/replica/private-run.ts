/**
 * A server of ours on the published clone, for as long as we look at it or change it and before anybody else reaches it.
 *
 * It has ended when this settles, whatever happened, and it dies with us.
 */
import { lstat, mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { isServerRunning, type PrivateServer, startPrivateServer } from '@pgcloned/postgres';
import { ifMissing } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { pathBesideLock } from '../target/locks.ts';
import { watchSpace } from '../target/space-watch.ts';
import { isDetached } from './detached.ts';
import { type Recovery, readRecovery, startupActivity } from './recovery.ts';

const POLL_INTERVAL_MS = 20;

/** Runs `work` while it runs. Where that succeeds the server ends in order, so that the next start has little to replay. */
export async function runPrivately<Result>(
  run: CloneRun,
  ready: Ready,
  work: (server: PrivateServer) => Promise<Result>,
): Promise<Result> {
  const dataDirectory = ready.data.final;
  const directory = await makeDirectory(run, dataDirectory);
  // What a file of onReady rewrites it takes the room of, and of its WAL, beside others on these filesystems.
  const space = await watchSpace(run, {
    directories: [dataDirectory, ...run.filled],
    walSegmentBytes: ready.facts.walSegmentBytes,
    use: 'the clone',
    hint:
      run.plan.source.onReady.length > 0
        ? 'Make room there, then clone again.'
        : `Make room there, then start the clone in ${dataDirectory}, which is complete, or clone again.`,
  });
  const server = await startPrivateServer({
    binDirectory: ready.binDirectory,
    dataDirectory,
    configFile: ready.hostConfiguration,
    directory,
    // A standby is looked at as long as it is one; a detached clone once it is none any more.
    hotStandby: !isDetached(run.plan),
    inheritedFds: run.locks.fds(),
  });
  let result: Result;
  try {
    result = await work(server);
  } catch (error) {
    await server.abandon();
    await forgetOptions(dataDirectory);
    throw run.signal.aborted ? error : asOfClone(error, server.log());
  }
  await server.stop();
  await space.stop();
  await forgetOptions(dataDirectory);
  return result;
}

/** A session with it speaks of every server as of a source: here it is that of the clone. */
export function asOfClone(error: unknown, log: string): unknown {
  if (!(error instanceof CloneError) || !error.code.startsWith('SOURCE_')) return error;
  const options = { facts: { ...error.facts, log }, cause: error };
  if (error.code === 'SOURCE_NO_SPACE')
    return new CloneError('TARGET_NO_SPACE', 'the clone has no space left', options);
  return new CloneError('REPLICA_START_FAILED', 'a private server on the clone failed', {
    ...options,
    hint: 'Read the end of its log in the facts, mend what it names, and clone again.',
  });
}

/** What a killed process has left. Whoever calls holds the lock on the data directory. */
export async function removeBootDirectory(dataDirectory: string): Promise<void> {
  const directory = await pathBesideLock(dataDirectory, 'boot');
  const found = await lstat(directory).catch(ifMissing(null));
  if (found?.isDirectory() !== true || found.uid !== process.getuid?.()) return;
  await forgetOptions(dataDirectory);
  await rm(directory, { recursive: true });
}

/** `pg_ctl restart` starts a server that does not run with the options of the last one: ours lets everybody in, and streams not. */
async function forgetOptions(dataDirectory: string): Promise<void> {
  const file = join(dataDirectory, 'postmaster.opts');
  const options = await readFile(file, 'utf8').catch(ifMissing(''));
  if (options.includes(await pathBesideLock(dataDirectory, 'boot'))) await rm(file);
}

/** Beside the lock, as a socket needs a short path; others may not look into it. */
async function makeDirectory(run: CloneRun, dataDirectory: string): Promise<string> {
  const directory = await pathBesideLock(dataDirectory, 'boot');
  run.cleanup.always({
    what: `directory ${directory}`,
    remedy: `rm -r ${directory}`,
    undo: async () => {
      await removeBootDirectory(dataDirectory);
    },
  });
  await mkdir(directory, { mode: 0o700 });
  return directory;
}

/**
 * Waits until it takes sessions: a detached clone is promoted then.
 *
 * @returns `ended` if it has ended before, `stalled` if for `stallMs` nothing has moved.
 */
export async function untilSessions(
  { plan, signal }: CloneRun,
  ready: Ready,
  server: PrivateServer,
): Promise<{ readonly outcome: 'ready' | 'ended' | 'stalled'; readonly recovery: Recovery }> {
  const dataDirectory = ready.data.final;
  let hasEnded = false;
  void server.exited.then(() => {
    hasEnded = true;
  });
  let mark = '';
  let movedAtMs = performance.now();
  for (;;) {
    signal.throwIfAborted();
    const postmaster = await isServerRunning(dataDirectory);
    const recovery = await readRecovery(dataDirectory, signal);
    if (postmaster?.pid === server.pid && postmaster.status === 'ready')
      return { outcome: 'ready', recovery };
    if (hasEnded) return { outcome: 'ended', recovery };
    const now = JSON.stringify([postmaster?.status, recovery, await startupActivity(server.pid)]);
    if (now !== mark) movedAtMs = performance.now();
    mark = now;
    if (performance.now() - movedAtMs > plan.host.stallMs) return { outcome: 'stalled', recovery };
    await delay(POLL_INTERVAL_MS, undefined, { signal });
  }
}
