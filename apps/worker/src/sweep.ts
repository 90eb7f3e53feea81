/**
 * What a worker finds at its start: runs that were interrupted with the one before it, and records that nobody owns any
 * more.
 *
 * A run that was stopped, or died, goes on in its next attempt, which no late word of the old worker can hurt: the number
 * of the attempt is the fence. It does not go on if its cancel was asked for, if it was published (then it is complete, and
 * only what was to follow is missing), if Redis says that it has ended or knows another clone of its target in its place,
 * or if its worker died of it again and again.
 */
import {
  type Clone,
  CloneError,
  expiring,
  hasEnded,
  type Instance,
  isPublished,
  nextState,
  type Progress,
  recordError,
  withTransfer,
} from '@pgcloned/contract';
import type { SweepReport } from '@pgcloned/engine';
import type { HostQueue, OpenClone } from '@pgcloned/queue';
import { reportRun } from './clone-job.ts';
import { type PutAwayContext, putAway } from './put-away.ts';
import type { Run, RunJournal } from './run-journal.ts';

/** A clone that kills its worker shall not do so for ever; other reasons to die do not come so often in a row. */
const DEATHS_MAX = 5;

export interface SweepContext extends PutAwayContext {
  readonly journal: RunJournal;
}

interface QueueContext extends SweepContext {
  readonly queue: HostQueue;
  readonly workerId: string;
}

/**
 * Puts away what interrupted runs have left elsewhere, and ends those that were published; on disk only: Redis may be
 * away. Nobody else may hold the state directory.
 *
 * @returns Those that go on.
 * @throws The signal's reason if `signal` aborts.
 */
export async function sweepInterruptedRuns(context: SweepContext): Promise<readonly Run[]> {
  const interrupted = (await context.journal.list()).filter(({ clone }) => !hasEnded(clone.state));
  const goOn = await Promise.all(
    interrupted.map(async (run) => {
      const { published, leftovers } = await putAway(run, 'queued', context);
      // What could not be put away now the next attempt puts away, or its end names.
      // Also if its directory could not be looked at: what was published is never made again.
      if (!published && !isPublished(run.clone)) return run;
      context.log.warn({ cloneId: run.clone.id }, 'ended a published clone whose worker died');
      const clone = lostClone(run.clone, { published: true, leftovers });
      await context.journal.write({ ...run, clone, reported: false });
      return undefined;
    }),
  );
  return goOn.filter((run) => run !== undefined);
}

/** Claims the next attempt of each run in Redis. @returns Those to be made, or brought to their end as cancelled. */
export async function claimInterruptedRuns(
  runs: readonly Run[],
  context: QueueContext,
): Promise<readonly Run[]> {
  const { queue, journal, workerId, log } = context;
  const open = await queue.openClones();
  const claimed: Run[] = [];
  for (const run of runs) {
    const last = open.find(({ clone }) => clone.id === run.clone.id);
    const next = nextAttempt(run, last, workerId);
    const isWorn = next.deaths.count > DEATHS_MAX && next.clone.state !== 'cancelling';
    if (!isWorn && (last !== undefined || !isReplaced(run, open))) {
      // The journal first: after a death between the two, the attempt after this one is higher than both know.
      await journal.write(next);
      const fence = { attempt: next.clone.attempt, workerId };
      if ((await queue.confirm(next.clone, fence)) === 'stored') {
        claimed.push(next);
        continue;
      }
    }
    log.warn(
      { cloneId: run.clone.id, deaths: next.deaths.count },
      isWorn
        ? 'ended a clone that killed its worker again and again'
        : 'a clone has ended without us',
    );
    const clone = lostClone(next.clone, await putAway(next, 'failed', context));
    await journal.write({ ...next, clone });
  }
  return claimed;
}

/** Brings to Redis what it does not know yet, and ends the records of runs that this host knows nothing of. */
export async function reportEndedRuns(context: QueueContext): Promise<void> {
  const { journal, queue, workerId, log } = context;
  const open = await queue.openClones();
  for (const run of await journal.list()) {
    const { clone, reported } = run;
    if (!hasEnded(clone.state) || reported) continue;
    const last = open.find((one) => one.clone.id === clone.id);
    await reportRun({ ...run, clone: withLastWord(clone, last) }, context);
  }
  for (const { clone, fence, cancelRequested } of await queue.openClones()) {
    // Not begun: its turn comes. Or claimed just now.
    if (fence.workerId === workerId || (clone.state === 'queued' && fence.workerId === ''))
      continue;
    const known = await journal.read(clone.id);
    if (known !== undefined) {
      await queue.confirm(known.clone, fence);
      continue;
    }
    log.warn({ cloneId: clone.id }, 'ended a clone that has no journal');
    const becomes = cancelRequested ? 'cancelled' : 'failed';
    const run = { clone: cancelRequested ? toCancel(clone) : clone, filled: [] };
    await queue.confirm(lostClone(run.clone, await putAway(run, becomes, context)), fence);
  }
}

/** Whether somebody has asked for its target again, after its record was deleted: that clone builds upon what is there. */
function isReplaced({ clone }: Run, open: readonly OpenClone[]): boolean {
  const { dataDirectory } = clone.spec.target;
  return open.some((other) => other.clone.spec.target.dataDirectory === dataDirectory);
}

function nextAttempt(run: Run, last: OpenClone | undefined, workerId: string): Run {
  // Redis hears of every step, the journal of every phase; but either may have been away.
  const isFresher = (last?.clone.progress.wireBytes ?? 0) > run.clone.progress.wireBytes;
  const progress = isFresher && last !== undefined ? last.clone.progress : run.clone.progress;
  // What was asked for while nobody was there; what the dead worker had taken up the journal knows as well.
  const wish = last?.wishedTransfer ?? run.clone.spec.transfer;
  const clone: Clone = {
    ...withTransfer(run.clone, wish),
    attempt: Math.max(run.clone.attempt, last?.fence.attempt ?? 0) + 1,
    progress: brokenOff(progress, new Date().toISOString()),
  };
  const isToCancel = clone.state === 'cancelling' || last?.cancelRequested === true;
  return {
    ...run,
    workerId,
    reported: false,
    clone: isToCancel
      ? toCancel(clone)
      : {
          ...clone,
          state: nextState(clone.state, 'interrupt') ?? clone.state,
          waitingFor: 'the next attempt, after: the worker was started again',
        },
    deaths: clone.state === 'queued' ? run.deaths : oneMore(run.deaths, progress),
  };
}

/** It counts from the start again if the copy has got further in between, as `retry-budget.ts` of the engine has it. */
function oneMore({ count, leastMissingBytes }: Run['deaths'], progress: Progress): Run['deaths'] {
  const missing = progress.bytesTotal === 0 ? null : progress.bytesTotal - progress.keptBytes;
  const isFurther = missing !== null && missing < (leastMissingBytes ?? Number.POSITIVE_INFINITY);
  return isFurther
    ? { count: 1, leastMissingBytes: missing }
    : { count: count + 1, leastMissingBytes };
}

function toCancel(clone: Clone): Clone {
  const running = nextState(clone.state, 'start') ?? clone.state;
  return { ...clone, state: nextState(running, 'cancel') ?? clone.state, waitingFor: null };
}

/** What Redis knows better of a clone that was lost: the journal was last written a while before. */
function withLastWord(clone: Clone, last: OpenClone | undefined): Clone {
  if (clone.error?.code !== 'WORKER_LOST' || last?.clone.phase !== clone.phase) return clone;
  const { progress, instance } = last.clone;
  return {
    ...clone,
    progress: brokenOff(progress, clone.endedAt),
    instance:
      instance.state === 'running'
        ? { ...clone.instance, state: instance.state, port: instance.port }
        : clone.instance,
  };
}

/** Nothing goes on in it any more. */
function brokenOff(progress: Progress, endedAt: string | null): Progress {
  return {
    ...progress,
    bytesPerSecond: 0,
    etaSeconds: null,
    phases: progress.phases.map((phase) =>
      phase.state === 'running' ? { ...phase, state: 'failed', endedAt } : phase,
    ),
    workers: progress.workers.map((worker) => ({ ...worker, bytesPerSecond: 0 })),
  };
}

function lostClone(clone: Clone, { published, leftovers }: SweepReport): Clone {
  const { dataDirectory } = clone.spec.target;
  const error = new CloneError('WORKER_LOST', 'the worker died while it made the clone', {
    facts: { dataDirectory, published },
    hint: published
      ? `The clone in ${dataDirectory} is complete and can be started; only what was to follow is missing.`
      : 'See in the log of the worker, or of the kernel, why it died. What was copied cannot be started, and the next clone builds upon it.',
  });
  error.phase = clone.phase;
  const state = nextState(clone.state, 'fail') ?? clone.state;
  const endedAt = new Date().toISOString();
  const instance: Instance =
    published && clone.instance.state === 'unfinished'
      ? { ...clone.instance, state: 'stopped' }
      : clone.instance;
  return {
    ...clone,
    state,
    waitingFor: null,
    endedAt,
    progress: brokenOff(clone.progress, endedAt),
    instance: expiring({ ...clone, instance }, endedAt),
    error: state === 'failed' ? recordError(error) : null,
    leftovers: [...clone.leftovers, ...leftovers],
  };
}
