/**
 * One clone on this host, from the claim of its record to the end that Redis has taken.
 *
 * The order is what makes it safe: claim in Redis (a clone that was cancelled meanwhile is not begun), journal, engine,
 * journal, Redis. Dying between two of them leaves something that the next start takes up. Redis being away only delays
 * the first and the last step.
 */
import {
  type Clone,
  CloneError,
  CONTRACT_VERSION,
  hasEnded,
  type LogLine,
  type TransferLimits,
  toCloneError,
} from '@pgcloned/contract';
import {
  type CloneObserver,
  type ClonePlan,
  controlTransfer,
  type FilledDirectory,
  type runClone,
} from '@pgcloned/engine';
import { codeOf, isDiskFull, unlessAborted } from '@pgcloned/process';
import type { HostQueue } from '@pgcloned/queue';
import type { Logger } from 'pino';
import { planClone } from './clone-plan.ts';
import type { Instances } from './instances.ts';
import { type PutAwayContext, putAway } from './put-away.ts';
import { NO_DEATHS, type Run, type RunJournal } from './run-journal.ts';
import { startRunRecord } from './run-record.ts';
import type { Slots } from './slots.ts';

/** Progress between two events; the publisher has a pace of its own. */
const TICK_MS = 500;

/** What the journal may lag behind: a worker that is killed forgets no more of what went over the network. */
const JOURNAL_MS = 5_000;

export interface CloneJob {
  readonly cancel: () => void;
  /** Holds for what is still to be copied, in this attempt and in those to come; without effect once all is. */
  readonly changeTransfer: (limits: TransferLimits) => void;
  /** Whether it shall stay, once it is there. The wish itself is carried out at its end; until then Redis may lose it. */
  readonly protect: (isProtected: boolean) => void;
  /** The worker stops: the clone goes on when it is started again. */
  readonly suspend: () => void;
  /** Its record belongs to somebody else: it ends. */
  readonly giveUp: () => void;
  /** Whether it holds a slot, or is about to. */
  readonly isRunning: () => boolean;
  /** Settles when the run has ended and the journal says so. Never rejects. */
  readonly finished: Promise<void>;
  /** Settles when there is nothing more to do for the clone, its report included. Never rejects. */
  readonly reported: Promise<void>;
}

export interface CloneJobContext extends PutAwayContext {
  readonly queue: Pick<HostQueue, 'publish' | 'confirm' | 'appendLog'>;
  readonly journal: RunJournal;
  readonly slots: Slots;
  readonly workerId: string;
  readonly runClone: typeof runClone;
  readonly makeRoom: Instances['makeRoom'];
  readonly giveWay: Instances['giveWay'];
  readonly takeBack: Instances['takeBack'];
}

export interface CloneToMake {
  readonly clone: Clone;
  /** The version that its job was written with. */
  readonly contract: number;
  /** What this host has done for it already, and claimed; null: somebody gives it to us now. */
  readonly before: Run | null;
}

/** Does what is left to be done for a clone: nothing if this host has ended it, except saying so again. */
export function startCloneJob(
  { clone, contract, before }: CloneToMake,
  context: CloneJobContext,
): CloneJob {
  const { queue, journal, workerId, slots } = context;
  const log = context.log.child({ cloneId: clone.id });
  const controller = new AbortController();
  const finished = Promise.withResolvers<void>();
  const transferControl = controlTransfer(clone.spec.transfer);
  const filled = new Map((before?.filled ?? []).map((one) => [one.path, one]));
  let begunFrom = before?.begunFrom ?? null;
  let hasStopped = before?.hasStopped ?? false;
  let isClaimed = before !== null;
  let waits = false;
  let stops = false;
  let journaled = Promise.resolve();
  const record = startRunRecord(clone, {
    changed: () => {
      publish();
    },
    line: (line) => {
      writeToLog(log, line);
      if (line.level !== 'debug') queue.appendLog(clone.id, line);
    },
  });
  const publish = () => {
    const snapshot = record.snapshot();
    queue.publish(snapshot, { attempt: snapshot.attempt, workerId });
  };
  const runNow = (): Run => ({
    clone: record.snapshot(),
    workerId,
    reported: false,
    filled: [...filled.values()],
    deaths: before?.deaths ?? NO_DEATHS,
    begunFrom,
    hasStopped,
  });
  const keepJournal = (): Promise<void> => {
    const run = runNow();
    // One that failed does not keep the next from being tried.
    journaled = journaled
      .catch(() => {})
      .then(async () => {
        await journal.write(run);
      })
      .catch((error: unknown) => {
        throw notJournaled(error);
      });
    return journaled;
  };
  /** What it misses now it gets with the next step: a disk that is full for a moment is no reason to end. */
  const keepJournalSoon = () => {
    keepJournal().catch((error: unknown) => {
      log.warn({ err: error }, 'the journal of the clone cannot be written just now');
    });
  };
  const observer: CloneObserver = {
    ...record.observer,
    phaseStarted: (name) => {
      record.observer.phaseStarted(name);
      keepJournalSoon();
    },
    begunFrom: (role) => {
      begunFrom = role;
      keepJournalSoon();
    },
    interrupted: (next) => {
      record.observer.interrupted(next);
      keepJournalSoon();
    },
    filling: (directory) => {
      filled.set(directory.path, sameAsMade(filled.get(directory.path), directory));
      keepJournal().catch(journalBroken);
    },
    published: () => {
      record.observer.published();
      keepJournalSoon();
    },
  };
  /** A run of which nobody could put away what it made must not go on. */
  const journalBroken = (error: unknown) => {
    controller.abort(error);
  };

  /** @returns Whether it is ours to begin. */
  const isToBegin = async (): Promise<boolean> => {
    const known = await journal.read(clone.id);
    if (known !== undefined && known.clone.attempt >= clone.attempt) {
      if (hasEnded(known.clone.state)) await reportRun(known, context);
      return false;
    }
    // Else somebody else's, or of a worker that lost its state.
    return clone.state === 'queued';
  };

  const claim = async (): Promise<boolean> => {
    record.begin();
    isClaimed = true;
    const outcome = await queue.confirm(record.snapshot(), { attempt: clone.attempt, workerId });
    if (outcome === 'stored') return true;
    log.info({ outcome }, 'clone is not begun');
    return false;
  };

  /** @returns The port of the clone whose place this one takes; null: it takes none, or none is there any more. */
  const portGiven = async (signal: AbortSignal): Promise<number | null> => {
    if (clone.resetOf === null) return null;
    const given = await context.giveWay(clone.resetOf, {
      beforeStop: async () => {
        hasStopped = true;
        await keepJournal();
      },
      signal,
    });
    return given.port;
  };
  const settlePlace = async (): Promise<void> => {
    if (clone.resetOf !== null)
      await context.takeBack(clone.resetOf, { starts: hasStopped && !record.isPublished() });
  };

  const make = async (): Promise<void> => {
    await keepJournal();
    const ticker = setInterval(publish, TICK_MS);
    const journalTicker = setInterval(keepJournalSoon, JOURNAL_MS);
    try {
      const { signal } = controller;
      await unlessAborted(context.makeRoom(clone.spec.target.dataDirectory), signal);
      const port = await portGiven(signal);
      const plan = withPort(
        { ...(await planOf(record.snapshot(), contract, context)), begunFrom },
        port,
      );
      const result = await context.runClone(plan, { observer, signal, transferControl });
      record.succeed(result);
      observer.log('info', `clone ${record.snapshot().state}`, { durationMs: result.durationMs });
    } finally {
      clearInterval(ticker);
      clearInterval(journalTicker);
    }
  };

  const end = async (failure: CloneError): Promise<void> => {
    const isStopped = stops && failure.code === 'WORKER_STOPPED';
    const isCancelled = record.snapshot().state === 'cancelling';
    if (isStopped && !isCancelled && !record.isPublished()) {
      record.suspend(`the worker of host ${clone.host} to start again`);
      observer.log('info', 'clone is suspended: its worker stops');
      return;
    }
    // What its own attempts have made the engine has put away; not what those of a dead worker have.
    if (before !== null && !record.isPublished()) {
      const becomes = isCancelled ? 'cancelled' : 'failed';
      const { leftovers } = await putAway(runNow(), becomes, context);
      for (const leftover of leftovers) observer.leftover(leftover);
      if (isCancelled) observer.instance({ state: 'absent' });
    }
    const error = isStopped && record.isPublished() ? stoppedTooLate(clone, failure) : failure;
    const { code, message, hint, facts } = error;
    if (code === 'INTERNAL') log.error({ err: error.cause ?? error }, 'bug');
    await settlePlace();
    record.fail(error);
    if (record.snapshot().state === 'cancelled') observer.log('info', 'clone is cancelled');
    else observer.log('warn', `clone failed: ${message}`, { ...facts, code, hint });
  };

  const work = async (): Promise<void> => {
    if (before === null && !(await isToBegin())) return;
    try {
      waits = true;
      // One that goes on asks for it before anything is awaited, and so before any other.
      using _ = await slots.take(controller.signal);
      waits = false;
      if (before === null && !(await claim())) return;
      await make();
      await settlePlace();
    } catch (error) {
      // The worker stops before its turn has come: nobody has claimed it.
      if (waits && before === null) return;
      waits = false;
      await end(toCloneError(error));
    }
    await keepJournal().catch((error: unknown) => {
      log.error({ err: error }, 'the end of the clone could not be journaled');
    });
    finished.resolve();
    await reportRun(runNow(), context);
  };

  const cancel = () => {
    if (controller.signal.aborted) return;
    if (record.isPublished()) {
      log.info('cancel comes too late: the clone is published');
      return;
    }
    record.cancel();
    keepJournalSoon();
    controller.abort(new CloneError('CANCELLED', 'the clone was cancelled'));
  };
  const changeTransfer = (limits: TransferLimits) => {
    const { workers, maxRate } = transferControl.limits();
    if (limits.workers === workers && limits.maxRate === maxRate) return;
    // Before, it comes with the answer to the claim.
    if (!isClaimed || hasEnded(record.snapshot().state)) return;
    transferControl.change(limits);
    record.changeTransfer(limits);
    keepJournalSoon();
  };
  const protect = (isProtected: boolean) => {
    if (!isClaimed || hasEnded(record.snapshot().state)) return;
    record.observer.instance({ protected: isProtected });
    keepJournalSoon();
  };
  if (clone.state === 'cancelling') cancel();
  const reported = work()
    .catch((error: unknown) => {
      log.error({ err: error }, 'clone could not be worked on');
    })
    .finally(finished.resolve);
  return {
    finished: finished.promise,
    reported,
    isRunning: () => !waits,
    suspend: () => {
      stops = true;
      controller.abort(workerStopped('the worker was stopped'));
    },
    giveUp: () => {
      controller.abort(workerStopped('another worker has taken over the record of the clone'));
    },
    cancel,
    changeTransfer,
    protect,
  };
}

/** Brings a run to Redis, and notes of one that has ended that it is there. */
export async function reportRun(
  run: Run,
  { queue, journal }: Pick<CloneJobContext, 'queue' | 'journal'>,
): Promise<void> {
  const { clone, workerId } = run;
  const outcome = await queue.confirm(clone, { attempt: clone.attempt, workerId });
  if (outcome !== 'unavailable' && hasEnded(clone.state) && !run.reported)
    await journal.write({ ...run, reported: true });
}

function notJournaled(cause: unknown): CloneError {
  const { path } = cause as NodeJS.ErrnoException;
  const isFull = isDiskFull(cause);
  return new CloneError(
    isFull ? 'TARGET_NO_SPACE' : 'INTERNAL',
    isFull
      ? 'the state directory of the worker has no space left'
      : 'the journal of the run cannot be written',
    {
      facts: { reason: codeOf(cause), file: path ?? null },
      hint: 'Look whether the filesystem of the state directory is full or broken, mend it, and clone again.',
      cause,
    },
  );
}

/** A later attempt finds what an earlier one has made: only that one knows what else had to be made for it. */
function sameAsMade(
  known: FilledDirectory | undefined,
  directory: FilledDirectory,
): FilledDirectory {
  return { ...directory, madeFrom: directory.madeFrom ?? known?.madeFrom ?? null };
}

async function planOf(
  clone: Clone,
  contract: number,
  { host, journal }: Pick<CloneJobContext, 'host' | 'journal'>,
): Promise<ClonePlan> {
  if (contract > CONTRACT_VERSION) {
    throw new CloneError('NOT_SUPPORTED', 'the clone was asked for by a newer pgcloned', {
      facts: { contract, contractOfWorker: CONTRACT_VERSION },
      hint: 'Bring the worker of this host to the version of the API.',
    });
  }
  return await planClone(clone, host, journal);
}

/** A clone that takes the place of another one is reached where that was, unless something else is asked for. */
function withPort(plan: ClonePlan, port: number | null): ClonePlan {
  const { replica } = plan.spec;
  if (port === null || replica.port !== null || replica.settings.port !== undefined) return plan;
  return { ...plan, spec: { ...plan.spec, replica: { ...replica, port } } };
}

function writeToLog(log: Logger, { level, message, phase, fields }: LogLine): void {
  log[level]({ phase, ...fields }, message);
}

function workerStopped(message: string): CloneError {
  return new CloneError('WORKER_STOPPED', message, { hint: 'Ask for the clone again.' });
}

function stoppedTooLate({ spec }: Clone, { message, phase }: CloneError): CloneError {
  const { dataDirectory } = spec.target;
  const error = new CloneError('WORKER_STOPPED', message, {
    facts: { dataDirectory, published: true },
    hint: `The clone in ${dataDirectory} is complete and can be started; only what was to follow is missing.`,
  });
  error.phase = phase;
  return error;
}
