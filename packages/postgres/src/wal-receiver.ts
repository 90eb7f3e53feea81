/**
 * Streams WAL from the source into a directory, by `pg_receivewal`.
 *
 * It takes no slot: with one it would report what it has flushed, become a synchronous standby and block commits (R4.8).
 * Without a slot it would begin wherever the source writes now, which is too late on a standby, so an empty `.partial`
 * file tells it where to begin (R4.2). It streams for certain only once the WAL sender says so (R4.3).
 *
 * A stream that breaks while the source lives and still has the WAL is taken up again: a disk that stalls in fsync for
 * longer than `wal_sender_timeout` is no reason to copy terabytes anew. One that stands still although the source has more
 * is ended and taken up again in the same way. What cannot be taken up again ends in `lost`.
 */
import { watch } from 'node:fs';
import { readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { ifMissing, type RunningProcess } from '@pgcloned/process';
import { formatLsn, parseLsn } from './lsn.ts';
import {
  completeUpTo,
  emptyHalfMade,
  explainEnd,
  startStreaming,
  type WalReceiverOptions,
} from './pg-receivewal.ts';
import { segmentName, segmentsBetween } from './wal-segment.ts';

export interface WalReceiver extends AsyncDisposable {
  /** Settles with the reason when the stream is broken for good. */
  readonly lost: Promise<CloneError>;
  /** How far the stream has come, as the source knows it; what is written need not be safe yet. Null: nothing yet. */
  receivedLsn(signal: AbortSignal): Promise<string | null>;
  /** Up to where all WAL since the seed is here in complete segments, which are on disk. Null: not one yet. */
  completeUpTo(): Promise<string | null>;
  /**
   * Waits until `completeUpTo` has reached `lsn`.
   *
   * @throws {CloneError} `STALLED` if nothing arrives although the stream was taken up again, or what `lost` settles with.
   */
  waitUntilComplete(lsn: string, signal: AbortSignal): Promise<void>;
  /**
   * Waits until WAL up to `lsn` is here, be it in a segment that nobody completes: a standby writes none of its own, and
   * its primary may be idle (R3.5). Errors are those of `waitUntilComplete`.
   */
  waitUntilReceived(lsn: string, signal: AbortSignal): Promise<void>;
  /** Ends the stream in order, so that what was received is flushed (R4.6). Settles once the process is gone. */
  stop(signal: AbortSignal): Promise<void>;
}

/** Stopping without an order to wait, for whoever only wants to be rid of it. */
const DISPOSE_LIMIT_MS = 10_000;
/** Attempts that bring not one more segment. */
const FRUITLESS_RESTARTS_MAX = 3;
const RESTART_PAUSE_MS = 500;
const STREAM_LOOK_MS = 2_000;
/** Where files come without an event: on a network filesystem. */
const RECHECK_MS = 1_000;
/** The program tells how far it is once a second. */
const RECEIVED_POLL_MS = 100;

/**
 * Settles once WAL is streaming.
 *
 * @throws {CloneError} `WAL_REMOVED` if the source no longer has the seed, `SOURCE_NO_WAL_SENDER`,
 *   `SOURCE_RIGHTS_MISSING` with the missing line of pg_hba.conf, `SOURCE_AUTHENTICATION_FAILED`, `SOURCE_UNREACHABLE`,
 *   `SOURCE_LOST` if `session` ends, `TARGET_NO_SPACE`, `WAL_RECEIVER_FAILED` for every other reason, with the program's
 *   own words.
 */
export async function startWalReceiver(options: WalReceiverOptions): Promise<WalReceiver> {
  const { directory, seed, signal, applicationName, session } = options;
  if ((await readdir(directory)).length > 0) throw new Error(`${directory} is not empty`);
  await writeFile(join(directory, `${segmentName(seed)}.partial`), '', { mode: 0o600 });

  let child = await startStreaming(options, signal);
  const stopping = new AbortController();
  const { promise: lost, resolve: resolveLost } = Promise.withResolvers<CloneError>();

  let fruitless = 0;
  let completeBefore = await completeUpTo(options);
  const startAgain = async (why: CloneError): Promise<RunningProcess> => {
    for (let reason = why; ; ) {
      const complete = await completeUpTo(options);
      fruitless = complete === completeBefore ? fruitless + 1 : 0;
      completeBefore = complete;
      if (reason.code !== 'WAL_RECEIVER_FAILED' || fruitless > FRUITLESS_RESTARTS_MAX) throw reason;
      await delay(RESTART_PAUSE_MS, undefined, { signal: stopping.signal });
      await emptyHalfMade(options);
      try {
        return await startStreaming(options, stopping.signal);
      } catch (error) {
        if (!(error instanceof CloneError)) throw error;
        reason = error;
      }
    }
  };
  const supervise = async (): Promise<void> => {
    for (;;) {
      const exit = await child.exited;
      if (stopping.signal.aborted) return;
      child = await startAgain(await explainEnd(options, child, exit, stopping.signal));
    }
  };
  const supervised = supervise().catch((error: unknown) => {
    if (stopping.signal.aborted) return;
    resolveLost(error instanceof CloneError ? error : brokenBy(error));
  });

  const watching = endWhenStalled(options, () => child, stopping.signal);

  const stop = async (limit: AbortSignal): Promise<void> => {
    stopping.abort();
    const kill = () => void child.stop('SIGKILL');
    limit.addEventListener('abort', kill, { once: true });
    try {
      if (limit.aborted) kill();
      // SIGTERM would end PostgreSQL 15's without closing its file (R4.6).
      await child.stop('SIGINT');
      await supervised;
      await watching;
    } finally {
      limit.removeEventListener('abort', kill);
    }
  };

  const receivedLsn = async (querySignal: AbortSignal) => {
    const [row] = await session.query<{ writeLsn: string | null }>(
      `SELECT write_lsn::text AS "writeLsn" FROM pg_stat_replication
        WHERE application_name = $1 ORDER BY backend_start DESC LIMIT 1`,
      [applicationName],
      querySignal,
    );
    return row?.writeLsn ?? (await completeUpTo(options));
  };
  return {
    lost,
    receivedLsn,
    completeUpTo: async () => await completeUpTo(options),
    waitUntilComplete: async (lsn, waitSignal) => {
      await waitUntilHere(options, {
        lsn,
        hereUpTo: async () => await completeUpTo(options),
        intervalMs: RECHECK_MS,
        signal: waitSignal,
        lost,
      });
    },
    waitUntilReceived: async (lsn, waitSignal) => {
      await waitUntilHere(options, {
        lsn,
        hereUpTo: async () => await receivedLsn(waitSignal),
        intervalMs: RECEIVED_POLL_MS,
        signal: waitSignal,
        lost,
      });
    },
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop(AbortSignal.timeout(DISPOSE_LIMIT_MS));
    },
  };
}

/**
 * Ends the program when its stream stands still although the source has more: a WAL sender that hangs says nothing, and its
 * client waits for ever. Never rejects.
 */
async function endWhenStalled(
  options: WalReceiverOptions,
  child: () => RunningProcess,
  signal: AbortSignal,
): Promise<void> {
  const { session, applicationName, stallMs } = options;
  const intervalMs = Math.min(STREAM_LOOK_MS, stallMs / 4);
  let mark = '';
  // Looks count, and not time: between two of them the session may be busy with a checkpoint.
  let looksWithoutMove = 0;
  for (;;) {
    await delay(intervalMs, undefined, { signal }).catch(() => {});
    if (signal.aborted) return;
    try {
      const senders = await session.query<{ writeLsn: string | null; hasAll: boolean | null }>(
        STREAM_STATE,
        [applicationName],
        signal,
      );
      const { pid } = child();
      const now = JSON.stringify([pid, senders[0]?.writeLsn, await completeUpTo(options)]);
      const moves = now !== mark || senders[0]?.hasAll === true;
      mark = now;
      looksWithoutMove = moves ? 0 : looksWithoutMove + 1;
      // Whoever watches over it takes the stream up again.
      if (looksWithoutMove * intervalMs > stallMs) await child().stop('SIGKILL');
    } catch {
      // A session that cannot be asked is the concern of its owner.
      looksWithoutMove = 0;
    }
  }
}

/** A standby has what it has replayed or received; an earlier sender of ours may not have noticed its end. */
const STREAM_STATE = `
  SELECT write_lsn::text AS "writeLsn",
         write_lsn >= CASE WHEN pg_is_in_recovery()
                           THEN greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())
                           ELSE pg_current_wal_flush_lsn() END AS "hasAll"
    FROM pg_stat_replication WHERE application_name = $1 ORDER BY backend_start DESC LIMIT 1`;

function brokenBy(cause: unknown): CloneError {
  return new CloneError('WAL_RECEIVER_FAILED', 'the WAL stream cannot be watched', {
    facts: { reason: cause instanceof Error ? cause.message : String(cause) },
    cause,
  });
}

async function waitUntilHere(
  options: WalReceiverOptions,
  {
    lsn,
    hereUpTo,
    intervalMs,
    signal,
    lost,
  }: {
    readonly lsn: string;
    readonly hereUpTo: () => Promise<string | null>;
    /** Between two looks, if nothing happens. */
    readonly intervalMs: number;
    readonly signal: AbortSignal;
    readonly lost: Promise<CloneError>;
  },
): Promise<void> {
  // Twice: a stream that stands still is taken up again first.
  const stallMs = 2 * options.stallMs;
  const wanted = parseLsn(lsn);
  const seen: { lastEventAtMs: number; lost?: CloneError } = { lastEventAtMs: performance.now() };
  let changed = Promise.withResolvers<void>();
  const wake = () => {
    changed.resolve();
  };
  // Each write into the segment that arrives is an event; only a file that gets its final name is worth a look.
  const watcher = watch(options.directory, (event) => {
    seen.lastEventAtMs = performance.now();
    if (event === 'rename') wake();
  });
  watcher.on('error', wake);
  signal.addEventListener('abort', wake, { once: true });
  void lost.then((reason) => {
    seen.lost = reason;
    wake();
  });
  try {
    for (;;) {
      signal.throwIfAborted();
      if (seen.lost !== undefined) throw seen.lost;
      // Armed before looking, so that what comes meanwhile is not slept over.
      changed = Promise.withResolvers();
      const here = await hereUpTo();
      if (here !== null && parseLsn(here) >= wanted) return;
      if (performance.now() - seen.lastEventAtMs > stallMs) {
        throw new CloneError('STALLED', `no WAL has arrived for ${String(stallMs / 1000)} s`, {
          facts: { wantedLsn: lsn, hereLsn: here },
          hint: 'Check the load of the target disk and of the network to the source.',
        });
      }
      const timer = setTimeout(wake, intervalMs);
      await changed.promise;
      clearTimeout(timer);
    }
  } finally {
    signal.removeEventListener('abort', wake);
    watcher.close();
  }
}

/**
 * Gives the last segment its final name where the stream has ended in the middle of it. It has its full length: what has not
 * arrived is zeros, at which recovery goes on by streaming (R4.14).
 *
 * @param o.endLsn WAL up to here has been waited for; a segment that is complete has its name already.
 */
export async function keepUnfinishedSegment(
  directory: string,
  {
    timeline,
    endLsn,
    segmentBytes,
  }: { readonly timeline: number; readonly endLsn: string; readonly segmentBytes: number },
): Promise<void> {
  const [last = ''] = segmentsBetween({
    ...{ timeline, segmentBytes, endLsn },
    startLsn: formatLsn(parseLsn(endLsn) - 1n),
  });
  await rename(join(directory, `${last}.partial`), join(directory, last)).catch(
    ifMissing(undefined),
  );
}
