/**
 * One clone on this host, from the claim of its record to the end that Redis has taken.
 *
 * The order is what makes it safe: claim in Redis (a clone that was cancelled meanwhile is not begun), journal, engine,
 * journal, Redis. Dying between two of them leaves something that the sweep at the next start puts right. Redis being
 * away only delays the first and the last step.
 */
import {
  type Clone,
  CloneError,
  CONTRACT_VERSION,
  hasEnded,
  type LogLine,
  toCloneError,
} from '@pgcloned/contract';
import type { CloneObserver, ClonePlan, runClone } from '@pgcloned/engine';
import type { HostQueue } from '@pgcloned/queue';
import type { Logger } from 'pino';
import { type HostConfiguration, planClone } from './clone-plan.ts';
import type { Run, RunJournal } from './run-journal.ts';
import { startRunRecord } from './run-record.ts';

/** Progress between two events; the publisher has a pace of its own. */
const TICK_MS = 500;

export interface CloneJob {
  readonly cancel: () => void;
  /** Ends the run with this error. */
  readonly stop: (reason: CloneError) => void;
  /** Settles when the run has ended and the journal says so. Never rejects. */
  readonly finished: Promise<void>;
  /** Settles when there is nothing more to do for the clone, its report included. Never rejects. */
  readonly reported: Promise<void>;
}

export interface CloneJobContext {
  readonly queue: Pick<HostQueue, 'publish' | 'confirm' | 'appendLog'>;
  readonly journal: RunJournal;
  readonly workerId: string;
  readonly host: HostConfiguration;
  readonly runClone: typeof runClone;
  readonly log: Logger;
}

/**
 * Does what is left to be done for `clone`: nothing if this host has ended it, except saying so again.
 *
 * @param contract The version that the job was written with.
 */
export function startCloneJob(clone: Clone, contract: number, context: CloneJobContext): CloneJob {
  const { queue, journal, workerId } = context;
  const log = context.log.child({ cloneId: clone.id });
  const controller = new AbortController();
  const finished = Promise.withResolvers<void>();
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
  const keepJournal = (): Promise<void> => {
    const run: Run = { clone: record.snapshot(), workerId, reported: false };
    // One that failed does not keep the next from being tried.
    journaled = journaled
      .catch(() => {})
      .then(async () => {
        await journal.write(run);
      });
    return journaled;
  };
  const observer: CloneObserver = {
    ...record.observer,
    phaseStarted: (name) => {
      record.observer.phaseStarted(name);
      keepJournal().catch(journalBroken);
    },
    interrupted: (next) => {
      record.observer.interrupted(next);
      keepJournal().catch(journalBroken);
    },
    published: () => {
      record.observer.published();
      keepJournal().catch(journalBroken);
    },
  };
  /** A run that could not be found again after a crash must not go on. */
  const journalBroken = (cause: unknown) => {
    controller.abort(
      new CloneError('INTERNAL', 'the journal of the run cannot be written', {
        hint: 'Look whether the filesystem of the state directory is full or broken.',
        cause,
      }),
    );
  };

  const work = async (): Promise<void> => {
    const known = await journal.read(clone.id);
    if (known !== undefined && known.clone.attempt >= clone.attempt) {
      if (hasEnded(known.clone.state)) await reportRun(known, context);
      return;
    }
    // Somebody else's, or of a worker that lost its state: not ours to begin.
    if (clone.state !== 'queued') return;
    const claim = await queue.confirm(record.snapshot(), { attempt: clone.attempt, workerId });
    if (claim !== 'stored') {
      log.info({ claim }, 'clone is not begun');
      return;
    }
    const ticker = setInterval(publish, TICK_MS);
    try {
      await keepJournal();
      const plan = planOf(clone, contract, context.host);
      const result = await context.runClone(plan, { observer, signal: controller.signal });
      record.succeed(result);
      observer.log('info', `clone ${record.snapshot().state}`, { durationMs: result.durationMs });
    } catch (error) {
      const failure = toCloneError(error);
      const { code, message, hint, facts } = failure;
      if (code === 'INTERNAL') log.error({ err: failure.cause ?? failure }, 'bug');
      record.fail(failure);
      const cancelled = record.snapshot().state === 'cancelled';
      if (cancelled) observer.log('info', 'clone is cancelled');
      else observer.log('warn', `clone failed: ${message}`, { ...facts, code, hint });
    } finally {
      clearInterval(ticker);
    }
    await keepJournal().catch((error: unknown) => {
      log.error({ err: error }, 'the end of the clone could not be journaled');
    });
    finished.resolve();
    await reportRun({ clone: record.snapshot(), workerId, reported: false }, context);
  };

  const reported = work()
    .catch((error: unknown) => {
      log.error({ err: error }, 'clone could not be worked on');
    })
    .finally(finished.resolve);
  return {
    finished: finished.promise,
    reported,
    stop: (reason) => {
      controller.abort(reason);
    },
    cancel: () => {
      if (controller.signal.aborted) return;
      if (record.isPublished()) {
        log.info('cancel comes too late: the clone is published');
        return;
      }
      record.cancel();
      keepJournal().catch(journalBroken);
      controller.abort(new CloneError('CANCELLED', 'the clone was cancelled'));
    },
  };
}

/** Brings an ended run to Redis, and notes that it is there. */
export async function reportRun(
  run: Run,
  { queue, journal }: Pick<CloneJobContext, 'queue' | 'journal'>,
): Promise<void> {
  const { clone, workerId } = run;
  const outcome = await queue.confirm(clone, { attempt: clone.attempt, workerId });
  if (outcome !== 'unavailable' && !run.reported) await journal.write({ ...run, reported: true });
}

function planOf(clone: Clone, contract: number, host: HostConfiguration): ClonePlan {
  if (contract > CONTRACT_VERSION) {
    throw new CloneError('NOT_SUPPORTED', 'the clone was asked for by a newer pgcloned', {
      facts: { contract, contractOfWorker: CONTRACT_VERSION },
      hint: 'Bring the worker of this host to the version of the API.',
    });
  }
  return planClone(clone, host);
}

function writeToLog(log: Logger, { level, message, phase, fields }: LogLine): void {
  log[level]({ phase, ...fields }, message);
}
