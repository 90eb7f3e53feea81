/**
 * Phase 2 of 8: WAL flows into a temporary directory here, from before the backup starts, and the source keeps what has
 * not arrived. With method reflink it keeps all of it: what is needed is taken from its pg_wal in the end.
 *
 * The pin is a temporary slot in a session of its own (R5.1, R5.3): it costs the source nothing after us, whatever
 * happens. The receiver uses no slot (R4.8), so it can never hold up a commit; where it begins is told by an empty file
 * (R4.2). The pin is also the proof that SQL and SSH lead to one cluster: its directory, of a random name, must be seen
 * through SSH (R11.2).
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError, toCloneError } from '@pgcloned/contract';
import {
  type Session,
  startWalReceiver,
  type WalReceiver,
  type WalReceiverOptions,
} from '@pgcloned/postgres';
import { remoteExists } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import { copiedCluster } from '../copy/journal.ts';
import { type HeldPin, holdPin } from '../held-pin.ts';
import type { Ready } from '../ready.ts';
import { repeat } from '../repeat.ts';
import type { Place } from '../target/layout.ts';
import { exists, isPublished } from '../target/marker.ts';
import { targetIsSource } from '../target/old-cluster.ts';
import { isUntouched, prepareDirectory, removePrepared, removeStrays } from '../target/prepare.ts';
import { type SpaceWatch, watchSpace } from '../target/space-watch.ts';

/** Bounds what the source keeps for us to the WAL of some seconds (R5.4), and shows the position while it moves. */
const FOLLOW_INTERVAL_MS = 2_000;

export interface WalStream {
  /** Null in unpinned mode. */
  readonly pin: HeldPin | null;
  /** Where the segments arrive. */
  readonly directory: string;
  /** Where the stream begins, or what the pin keeps. */
  readonly seedLsn: string;
  /** Null: nothing flows, all is taken at once when the backup has ended. */
  readonly receiver: WalReceiver | null;
  /** Ends the clone before what comes unasked fills a filesystem. */
  readonly space: SpaceWatch;
}

/**
 * @returns Null in unpinned mode: the checkpoint with which a backup begins lets the source remove all WAL before it, so
 *   a stream from further back would lose a race against that, and begins with the backup instead (R5.8).
 */
export async function streamWal(run: CloneRun, ready: Ready): Promise<WalStream | null> {
  await prepareTarget(run, ready);
  const pin = run.plan.spec.wal.retention === 'pin' ? await pinIfPossible(run, ready) : null;
  if (pin === null) return null;
  const seed = { seedLsn: pin.restartLsn, seedTimeline: pin.restartTimeline };
  return await openStream(run, ready, { pin, ...seed });
}

/** Settles once WAL from the segment of `seedLsn` on is streaming, if it shall. */
export async function openStream(
  run: CloneRun,
  ready: Ready,
  {
    pin,
    seedLsn,
    seedTimeline,
  }: Pick<WalStream, 'pin' | 'seedLsn'> & { readonly seedTimeline: number },
): Promise<WalStream> {
  const directory = join(ready.temporaryWalDirectory, 'wal');
  await mkdir(directory, { mode: 0o700 });
  const space = await watch(run, ready);
  if (run.plan.spec.method === 'reflink') return { pin, directory, seedLsn, receiver: null, space };
  const seed = {
    timeline: seedTimeline,
    lsn: seedLsn,
    segmentBytes: ready.facts.walSegmentBytes,
  };
  const receiver = await receive(run, ready, { directory, seed });
  // At once: until everything else of the clone has ended, more would arrive than there is room for.
  void space.lost.then(async () => {
    await receiver[Symbol.asyncDispose]();
  });
  follow(run, pin, receiver);
  return { pin, directory, seedLsn, receiver, space };
}

/** The first change on this host. What is taken over stays as it is until the copy begins. */
async function prepareTarget(run: CloneRun, ready: Ready): Promise<void> {
  const places = [ready.data, ...(ready.wal === null ? [] : [ready.wal])];
  for (const place of places) if (!place.takesOver) await prepareClonePlace(run, ready, place);
  const temporary = { kind: 'temporary-wal', build: ready.temporaryWalDirectory } as const;
  const prepared = await prepareDirectory(temporary, {
    cloneId: run.plan.id,
    dataDirectory: ready.data.final,
    mode: 0o700,
  });
  if (run.plan.keepTemporary) return;
  run.cleanup.always({
    what: `temporary WAL directory ${prepared.path}`,
    remedy: `rm -r ${prepared.path}`,
    unlimited: true,
    undo: async () => {
      await removePrepared(prepared);
    },
  });
}

/**
 * Also for tablespaces, once it is known which there are.
 *
 * A failed clone keeps what it copied; a cancelled one takes it away, but for what it has taken over: that was not made
 * by it, and its remains are what another clone can build upon. Nobody builds upon reflinks: they are made anew in no time,
 * and would only keep old blocks of the source from being freed.
 */
export async function prepareClonePlace(run: CloneRun, ready: Ready, place: Place): Promise<void> {
  await removeStrays(place, [place.build, ready.temporaryWalDirectory]);
  const buildsUpon = run.plan.spec.method === 'rsync';
  const isKept =
    buildsUpon && (await copiedCluster(ready.data.build)) === ready.facts.systemIdentifier;
  const prepared = await prepareDirectory(place, {
    cloneId: run.plan.id,
    dataDirectory: ready.data.final,
    mode: ready.facts.dataDirectoryMode,
    keepContents: place.kind !== 'wal' && isKept,
    spared: ready.temporaryWalDirectory,
  });
  if (place.kind === 'data') run.observer.instance({ state: 'unfinished' });
  if (run.filled.has(prepared.path)) return;
  run.filled.add(prepared.path);
  if (place.takesOver) return;
  run.observer.filling({ ...prepared, final: place.final });
  run.lasting.onFailure({
    what: `unfinished directory ${prepared.path}`,
    remedy: `rm -r ${prepared.path}`,
    unlimited: true,
    undo: async (_signal, error) => {
      if (await isPublished(ready.data.final, run.plan.id)) return;
      const { code } = toCloneError(error);
      // What is built aside serves only this very clone: another one builds under another name.
      const isOfUse = buildsUpon && (place.build === place.final || code === 'WORKER_STOPPED');
      if (isOfUse && code !== 'CANCELLED' && !(await isUntouched(prepared))) return;
      await removePrepared(prepared);
      if (place.kind === 'data') run.observer.instance({ state: 'absent' });
    },
  });
}

/** @throws {CloneError} `SOURCE_MISMATCH` if pin, backup session and SSH do not lead to one server. */
export async function pinIfPossible(run: CloneRun, ready: Ready): Promise<HeldPin | null> {
  let pin: HeldPin;
  try {
    pin = await holdPin(run, ready.settings);
  } catch (error) {
    run.signal.throwIfAborted();
    // R5.8
    run.warn(
      `no temporary slot is to be had (${toCloneError(error).message}), so the source may remove WAL that is still needed; the clone then fails`,
    );
    return null;
  }
  run.cleanup.always({
    what: `temporary slot ${pin.slotName} on ${ready.settings.host}:${String(ready.settings.port)}`,
    remedy: `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '${pin.slotName}'`,
    undo: async () => {
      await pin.release();
    },
  });
  // A server in another container is not seen from here (R9.8), but its data directory is.
  if (await exists(join(ready.data.final, 'pg_replslot', pin.slotName)))
    throw targetIsSource(ready.data.final, ready.facts.dataDirectory);
  if (!(await isSeen(ready.session, pin.slotName, run.signal))) {
    throw new CloneError('SOURCE_MISMATCH', 'two connections to the source lead to two servers', {
      facts: { host: ready.settings.host, port: ready.settings.port, missing: pin.slotName },
      hint: 'Name one server as the source, or several as `hosts`: here a load balancer, or a name with several addresses, stands between.',
    });
  }
  const slotDirectory = join(ready.facts.dataDirectory, 'pg_replslot', pin.slotName);
  if (!(await remoteExists(ready.host.runner(), { path: slotDirectory, signal: run.signal }))) {
    throw new CloneError('SOURCE_MISMATCH', 'SQL and SSH lead to different clusters', {
      facts: { host: ready.host.runner().label, missing: slotDirectory },
      hint: 'Check host, port and ssh.host of the source: the slot just made by SQL is not seen by SSH.',
    });
  }
  return pin;
}

async function isSeen({ query }: Session, slotName: string, signal: AbortSignal): Promise<boolean> {
  const seen = await query(
    'SELECT FROM pg_replication_slots WHERE slot_name = $1',
    [slotName],
    signal,
  );
  return seen.length > 0;
}

/** Files that are sent have a gate of their own (`copy/space-gate.ts`); reflinks are made where the source itself writes. */
async function watch(run: CloneRun, ready: Ready): Promise<SpaceWatch> {
  const { temporaryWalDirectory, data, wal, tablespaces, facts } = ready;
  const { walSegmentBytes } = facts;
  if (run.plan.spec.method === 'reflink') {
    const places = [data, ...(wal === null ? [] : [wal]), ...tablespaces];
    return await watchSpace(run, {
      directories: [temporaryWalDirectory, ...places.map(({ build }) => build)],
      walSegmentBytes,
      use: 'the clone',
      hint: 'Make room there, then clone again.',
    });
  }
  return await watchSpace(run, {
    directories: [temporaryWalDirectory],
    walSegmentBytes,
    use: 'WAL',
    hint: 'Make room there, or choose a target.temporaryWalDirectory on a larger filesystem, then clone into the same directory again: what was copied is kept.',
  });
}

async function receive(
  run: CloneRun,
  ready: Ready,
  { directory, seed }: Pick<WalReceiverOptions, 'directory' | 'seed'>,
): Promise<WalReceiver> {
  const receiver = await startWalReceiver({
    binDirectory: ready.binDirectory,
    settings: ready.settings,
    applicationName: run.name,
    directory,
    seed,
    session: ready.session,
    inheritedFds: run.locks.fds(),
    stallMs: run.plan.host.stallMs,
    signal: run.signal,
  });
  const unwatch = run.watch(receiver.lost);
  run.cleanup.always({
    what: `pg_receivewal ${run.name}`,
    remedy: `SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = '${run.name}'`,
    undo: async () => {
      unwatch();
      await receiver[Symbol.asyncDispose]();
    },
  });
  return receiver;
}

/** Tells the position, and lets the source remove what is safely here. */
function follow(run: CloneRun, pin: HeldPin | null, receiver: WalReceiver): void {
  const repetition = repeat(
    FOLLOW_INTERVAL_MS,
    async (signal) => {
      const complete = await receiver.completeUpTo();
      if (complete !== null) await pin?.advance(complete);
      const received = await receiver.receivedLsn(signal);
      if (received !== null) run.observer.wal({ receivedLsn: received });
    },
    (error) => {
      run.observer.log('debug', 'the position of the WAL stream could not be read', {
        reason: String(error),
      });
    },
  );
  run.cleanup.always({
    what: 'watch over the WAL stream',
    remedy: `kill ${String(process.pid)}`,
    undo: async () => {
      const stopped = repetition.stop();
      // Over a dead link the pin would be waited for: its end ends that, too.
      await pin?.release();
      await stopped;
    },
  });
}
