/**
 * The workers of a copy: each pulls a batch, runs one rsync, pulls the next, over PGDATA and all tablespaces together.
 *
 * Promises: every listed file is here when it returns, or was gone on the source (WAL tells, R6.3). A batch that broke
 * off is sent again with growing pauses; whatever of it is complete is not sent twice, because within one run equal size
 * and time mean equal content (R6.9). Files that were truncated while rsync read them are sent again by name, and after
 * some rounds taken as they are: replay of the WAL mends them (R6.1, R6.4).
 */
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, type ErrorFacts, type LogLevel } from '@pgcloned/contract';
import type { TransferOutcome } from '@pgcloned/rsync';
import type { Batch, BatchQueue } from './batches.ts';

/** With pauses of 0.25 s doubled each time this outlasts a restart of a switch, not a dead host. */
const ATTEMPTS_MAX = 6;
const FIRST_PAUSE_MS = 250;
/** A relation that is truncated more often while it is read is being vacuumed in a loop. */
const ROUNDS_MAX = 5;

export interface PoolOptions {
  readonly workers: number;
  /**
   * Settles when a batch may be sent. When the signal that it gives aborts, the batch is taken back and waits for its
   * turn again, which is no failure.
   */
  readonly admit: (batch: Batch, signal: AbortSignal) => Promise<AbortSignal>;
  /** One rsync. `repeat` tells why the batch is sent again, if it is. */
  readonly transfer: (
    batch: Batch,
    options: {
      readonly repeat: 'broke-off' | 'changed' | null;
      readonly onBytes: (bytes: number) => void;
      readonly signal: AbortSignal;
    },
  ) => Promise<TransferOutcome>;
  readonly copied: (step: {
    readonly worker: number;
    /** Of the batch. */
    readonly root: number;
    readonly bytes: number;
    readonly files: number;
  }) => void;
  readonly log: (level: LogLevel, message: string, fields: ErrorFacts) => void;
  readonly signal: AbortSignal;
}

export async function copyAll(queue: BatchQueue, options: PoolOptions): Promise<void> {
  const failed = new AbortController();
  const signal = AbortSignal.any([options.signal, failed.signal]);
  const work = async (worker: number) => {
    try {
      for (let batch = queue.next(); batch !== null; batch = queue.next()) {
        signal.throwIfAborted();
        await sendBatch(batch, worker, { ...options, signal });
      }
    } catch (error) {
      failed.abort(error);
      throw error;
    }
  };
  const ends = await Promise.allSettled(
    Array.from({ length: options.workers }, async (_, worker) => {
      await work(worker);
    }),
  );
  options.signal.throwIfAborted();
  // The first failure aborted the others, so theirs is the same reason.
  if (ends.some(({ status }) => status === 'rejected')) throw failed.signal.reason;
}

async function sendBatch(batch: Batch, worker: number, options: PoolOptions): Promise<void> {
  const { root } = batch;
  let pending: Batch = batch;
  let reported = 0;
  const copied = (bytes: number) => {
    reported += bytes;
    options.copied({ worker, root, bytes, files: 0 });
  };
  for (let round = 1; ; round += 1) {
    const outcome = await sendStubbornly(pending, round, { ...options, copied });
    if (outcome.again.length === 0) break;
    if (round === ROUNDS_MAX) {
      options.log('warn', 'files kept changing while they were read; WAL replay mends them', {
        files: outcome.again.length,
        first: outcome.again[0] ?? null,
      });
      break;
    }
    pending = { root, names: outcome.again, bytes: 0 };
  }
  // Nobody told of what was complete before it broke off, of equal checksum or gone; and twice of what changed.
  const bytes = batch.bytes - reported;
  options.copied({ worker, root, bytes, files: batch.names.length });
}

async function sendStubbornly(
  batch: Batch,
  round: number,
  options: Omit<PoolOptions, 'copied'> & { readonly copied: (bytes: number) => void },
): Promise<TransferOutcome> {
  let attempt = 1;
  let hasBegun = false;
  for (;;) {
    const halt = await options.admit(batch, options.signal);
    let reported = 0;
    try {
      return await options.transfer(batch, {
        repeat: round > 1 ? 'changed' : hasBegun ? 'broke-off' : null,
        onBytes: (bytes) => {
          reported += bytes;
          options.copied(bytes);
        },
        signal: AbortSignal.any([options.signal, halt]),
      });
    } catch (error) {
      options.signal.throwIfAborted();
      options.copied(-reported);
      hasBegun = true;
      if (halt.aborted) continue;
      if (!mayPass(error) || attempt === ATTEMPTS_MAX) throw error;
      options.log('warn', 'a batch broke off and is sent again', {
        code: error.code,
        reason: error.message,
        attempt,
        files: batch.names.length,
      });
      await delay(FIRST_PAUSE_MS * 2 ** (attempt - 1), undefined, { signal: options.signal });
      attempt += 1;
    }
  }
}

/** A full disk stays full, and a daemon that is gone does not come back by asking again. */
function mayPass(error: unknown): error is CloneError {
  return error instanceof CloneError && (error.code === 'SOURCE_LOST' || error.code === 'STALLED');
}
