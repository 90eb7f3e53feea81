/**
 * The workers of a copy: each pulls a batch, runs one rsync, pulls the next, over PGDATA and all tablespaces together.
 *
 * Promises: every listed file is here when it returns, or was gone on the source (WAL tells, R6.3). A batch that broke
 * off is sent again with growing pauses; whatever of it is complete is not sent twice, because within one run equal size
 * and time mean equal content (R6.9). Files that were truncated while rsync read them are sent again by name, and after
 * some rounds taken as they are: replay of the WAL mends them (R6.1, R6.4).
 *
 * How many workers there are may change at any time. Surplus ones stop at once and give back what they have, which goes on
 * where it was; that is no failure. New ones take what is left, and where nothing is left a share of what others have.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, type ErrorCode, type ErrorFacts, type LogLevel } from '@pgcloned/contract';
import type { TransferOutcome } from '@pgcloned/rsync';
import type { Batch, BatchQueue } from './batches.ts';

/** With pauses of 0.25 s doubled each time this outlasts a restart of a switch, not a dead host. */
const ATTEMPTS_MAX = 6;
const FIRST_PAUSE_MS = 250;
/** A relation that is truncated more often while it is read is being vacuumed in a loop. */
const ROUNDS_MAX = 5;

export interface TransferStep {
  readonly worker: number;
  /** Why the batch is sent again, if it is. */
  readonly repeat: 'broke-off' | 'changed' | null;
  readonly onBytes: (bytes: number) => void;
  readonly signal: AbortSignal;
}

export interface PoolOptions {
  /** At least one. */
  readonly workers: () => number;
  /** Calls back after each change of that number, until it is disposed of. */
  readonly onWorkersChange: (changed: () => void) => Disposable;
  /**
   * Settles when a batch may be sent. When one of the signals that it gives aborts, the batch is taken back and waits for
   * its turn again, which is no failure. They are several, since a signal made of others holds them weakly: when one of
   * them is gone, with whoever has aborted it, it no longer knows of that.
   */
  readonly admit: (batch: Batch, signal: AbortSignal) => Promise<readonly AbortSignal[]>;
  /** One rsync. */
  readonly transfer: (batch: Batch, step: TransferStep) => Promise<TransferOutcome>;
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

/** A batch on its way, whoever has it. */
interface Task {
  readonly batch: Batch;
  /** What of it is sent in this round: all, then what has changed meanwhile. */
  pending: Batch;
  round: number;
  /** Of this round; those that were stopped do not count. */
  attempt: number;
  hasBegun: boolean;
  reportedBytes: number;
}

interface Worker {
  task: Task;
  /** Its task is taken from it. */
  readonly stop: AbortController;
  /** Into how many its task is cut then. */
  parts: number;
}

export async function copyAll(queue: BatchQueue, options: PoolOptions): Promise<void> {
  const failed = new AbortController();
  const signal = AbortSignal.any([options.signal, failed.signal]);
  const crew = new Map<number, Worker>();
  const givenBack: Task[] = [];
  const ended = Promise.withResolvers<void>();

  const next = (): Task | null => {
    const task = givenBack.shift();
    if (task !== undefined) return task;
    const batch = queue.next();
    return batch && taskOf(batch);
  };
  const giveBack = ({ task, parts }: Worker) => {
    if (parts === 1) givenBack.push(task);
    else
      for (const batch of queue.split(task.batch, parts))
        givenBack.push({ ...taskOf(batch), hasBegun: task.hasBegun });
  };
  const start = (index: number, task: Task) => {
    const worker: Worker = { task, stop: new AbortController(), parts: 1 };
    crew.set(index, worker);
    void (async () => {
      try {
        for (let own: Task | null = task; own !== null; own = next()) {
          worker.task = own;
          signal.throwIfAborted();
          const isSent = await sendTask(own, index, worker.stop.signal, { ...options, signal });
          if (!isSent) giveBack(worker);
          if (worker.stop.signal.aborted) break;
        }
      } catch (error) {
        failed.abort(error);
      }
      crew.delete(index);
      staff();
      if (crew.size === 0) ended.resolve();
    })();
  };
  const staff = () => {
    for (let index = 0; index < options.workers() && !signal.aborted; index += 1) {
      if (crew.has(index)) continue;
      const task = next();
      if (task === null) return;
      start(index, task);
    }
  };
  let workersBefore = options.workers();
  const change = () => {
    const workers = options.workers();
    const hasGrown = workers > workersBefore;
    workersBefore = workers;
    for (const [index, { stop }] of crew) if (index >= workers) stop.abort();
    staff();
    // Those that start now would find nothing to do.
    if (hasGrown && crew.size < workers) share(Math.ceil(workers / crew.size));
  };
  const share = (parts: number) => {
    for (const worker of crew.values()) {
      const { round, batch } = worker.task;
      if (round > 1 || batch.names.length === 1 || worker.stop.signal.aborted) continue;
      worker.parts = parts;
      worker.stop.abort();
    }
  };

  using _ = options.onWorkersChange(change);
  staff();
  if (crew.size > 0) await ended.promise;
  options.signal.throwIfAborted();
  failed.signal.throwIfAborted();
}

function taskOf(batch: Batch): Task {
  return { batch, pending: batch, round: 1, attempt: 1, hasBegun: false, reportedBytes: 0 };
}

/** @returns Whether it was sent to its end; else `stop` has aborted, and somebody else is to go on with it. */
async function sendTask(
  task: Task,
  worker: number,
  stop: AbortSignal,
  options: PoolOptions,
): Promise<boolean> {
  const { root, names, bytes } = task.batch;
  const copied = (more: number) => {
    task.reportedBytes += more;
    options.copied({ worker, root, bytes: more, files: 0 });
  };
  for (;;) {
    const outcome = await sendStubbornly(task, stop, { ...options, worker, copied });
    if (outcome === null) return false;
    if (outcome.again.length === 0) break;
    if (task.round === ROUNDS_MAX) {
      options.log('warn', 'files kept changing while they were read; WAL replay mends them', {
        files: outcome.again.length,
        first: outcome.again[0] ?? null,
      });
      break;
    }
    task.pending = { root, names: outcome.again, bytes: 0 };
    task.round += 1;
    task.attempt = 1;
  }
  // Nobody told of what was complete before it broke off, of equal checksum or gone; and twice of what changed.
  options.copied({ worker, root, bytes: bytes - task.reportedBytes, files: names.length });
  return true;
}

/** @returns Null if `stop` has aborted. */
async function sendStubbornly(
  task: Task,
  stop: AbortSignal,
  options: Omit<PoolOptions, 'copied'> & {
    readonly worker: number;
    readonly copied: (bytes: number) => void;
  },
): Promise<TransferOutcome | null> {
  const signal = AbortSignal.any([options.signal, stop]);
  while (!stop.aborted) {
    let halts: readonly AbortSignal[] | undefined;
    let reported = 0;
    try {
      halts = await options.admit(task.pending, signal);
      return await options.transfer(task.pending, {
        worker: options.worker,
        repeat: task.round > 1 ? 'changed' : task.hasBegun ? 'broke-off' : null,
        onBytes: (bytes) => {
          reported += bytes;
          options.copied(bytes);
        },
        signal: AbortSignal.any([signal, ...halts]),
      });
    } catch (error) {
      options.signal.throwIfAborted();
      options.copied(-reported);
      task.hasBegun ||= halts !== undefined;
      if (stop.aborted || halts?.some(({ aborted }) => aborted) === true) continue;
      if (!mayPass(error) || task.attempt === ATTEMPTS_MAX) throw error;
      options.log('warn', 'a batch broke off and is sent again', {
        code: error.code,
        reason: error.message,
        attempt: task.attempt,
        files: task.pending.names.length,
      });
      const pauseMs = FIRST_PAUSE_MS * 2 ** (task.attempt - 1);
      task.attempt += 1;
      // Stopping ends the pause, which is no error.
      await delay(pauseMs, undefined, { signal }).catch(() => {
        options.signal.throwIfAborted();
      });
    }
  }
  return null;
}

/**
 * A full disk stays full, and a daemon that is gone does not come back by asking again; an sshd may just have too many
 * guests.
 */
const MAY_PASS: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'SOURCE_LOST',
  'STALLED',
  'SSH_UNREACHABLE',
]);

function mayPass(error: unknown): error is CloneError {
  return error instanceof CloneError && MAY_PASS.has(error.code);
}
