/**
 * What a worker finds at its start: runs that died with the one before it, and records that nobody owns any more.
 *
 * A run that died is not taken up again. Its record ends as failed and retryable at once, whatever BullMQ still believes
 * about its job; what it had copied serves the next clone into the same directory.
 */
import {
  type Clone,
  CloneError,
  hasEnded,
  type Leftover,
  nextState,
  type Progress,
} from '@pgcloned/contract';
import type { sweepClone } from '@pgcloned/engine';
import type { HostQueue, OpenClone } from '@pgcloned/queue';
import type { Logger } from 'pino';
import { reportRun } from './clone-job.ts';
import { type HostConfiguration, planClone } from './clone-plan.ts';
import type { RunJournal } from './run-journal.ts';
import { recordError } from './run-record.ts';

/** Dropping a slot on a source that does not answer must not hold up the start of the worker. */
const SWEEP_MS_MAX = 30_000;

export interface SweepContext {
  readonly journal: RunJournal;
  readonly host: HostConfiguration;
  readonly sweepClone: typeof sweepClone;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/**
 * Ends the runs that died, on disk only: Redis may be away. Nobody else may hold the state directory.
 *
 * @throws The signal's reason if `signal` aborts.
 */
export async function sweepDeadRuns(context: SweepContext): Promise<void> {
  const dead = (await context.journal.list()).filter(({ clone }) => !hasEnded(clone.state));
  await Promise.all(
    dead.map(async (run) => {
      const { published, leftovers } = await putAway(run.clone, context);
      context.signal.throwIfAborted();
      const clone = lostClone(run.clone, { published, leftovers });
      context.log.warn(
        { cloneId: clone.id, published, leftovers },
        'ended a clone whose worker died',
      );
      await context.journal.write({ ...run, clone, reported: false });
    }),
  );
}

/** Brings to Redis what it does not know yet, and ends the records of runs that this host knows nothing of. */
export async function reportEndedRuns(
  context: SweepContext & { readonly queue: HostQueue },
): Promise<void> {
  const { journal, queue, log } = context;
  const open = await queue.openClones();
  for (const run of await journal.list()) {
    const { clone, reported } = run;
    if (!hasEnded(clone.state) || reported) continue;
    const last = open.find((one) => one.clone.id === clone.id);
    const ended = last === undefined ? clone : withLastWord(clone, last);
    await reportRun({ ...run, clone: ended }, context);
  }
  for (const last of await queue.openClones()) {
    const { clone, fence } = last;
    // Not begun: its turn comes. One that waits between two attempts has a worker, which is gone.
    if (clone.state === 'queued' && fence.workerId === '') continue;
    const run = await journal.read(clone.id);
    if (run === undefined) log.warn({ cloneId: clone.id }, 'ended a clone that has no journal');
    const ended = run?.clone ?? lostClone(clone, await putAway(clone, context));
    await queue.confirm(withLastWord(ended, last), fence);
  }
}

/** What Redis knows better of a clone that was lost: the journal was last written when a phase began. */
function withLastWord(clone: Clone, { clone: last, cancelRequested }: OpenClone): Clone {
  if (clone.error?.code !== 'WORKER_LOST') return clone;
  const known =
    last.phase === clone.phase
      ? {
          progress: brokenOff(last.progress, clone.endedAt),
          instance: last.instance.state === 'running' ? last.instance : clone.instance,
        }
      : {};
  // Whoever asked for the cancel was told that the clone stops: its own end no longer counts.
  const end = cancelRequested ? ({ state: 'cancelled', error: null } as const) : {};
  return { ...clone, ...known, ...end };
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

async function putAway(
  clone: Clone,
  { host, log, signal, ...context }: SweepContext,
): Promise<{ readonly published: boolean; readonly leftovers: readonly Leftover[] }> {
  try {
    return await context.sweepClone(planClone(clone, host), {
      signal: AbortSignal.any([signal, AbortSignal.timeout(SWEEP_MS_MAX)]),
    });
  } catch (error) {
    signal.throwIfAborted();
    // Another clone has the directory: it has put away what was there.
    if (error instanceof CloneError && error.code === 'TARGET_BUSY') {
      return { published: false, leftovers: [] };
    }
    log.error({ cloneId: clone.id, err: error }, 'could not put away what a dead clone left');
    const { dataDirectory } = clone.spec.target;
    return {
      published: false,
      leftovers: [
        {
          what: `temporary directories of the clone beside ${dataDirectory}`,
          remedy: `Clone into ${dataDirectory} again: that puts away what is left.`,
        },
      ],
    };
  }
}

function lostClone(
  clone: Clone,
  {
    published,
    leftovers,
  }: { readonly published: boolean; readonly leftovers: readonly Leftover[] },
): Clone {
  const { dataDirectory } = clone.spec.target;
  const error = new CloneError('WORKER_LOST', 'the worker died while it made the clone', {
    facts: { dataDirectory, published },
    hint: published
      ? `The clone in ${dataDirectory} is complete and can be started; only what was to follow is missing.`
      : 'Ask for the clone again: what was copied cannot be started, and the next one builds upon it.',
  });
  error.phase = clone.phase;
  const state = nextState(clone.state, 'fail') ?? clone.state;
  const endedAt = new Date().toISOString();
  return {
    ...clone,
    state,
    waitingFor: null,
    endedAt,
    progress: brokenOff(clone.progress, endedAt),
    instance:
      published && clone.instance.state === 'unfinished'
        ? { ...clone.instance, state: 'stopped' }
        : clone.instance,
    error: state === 'failed' ? recordError(error) : null,
    leftovers: [...clone.leftovers, ...leftovers],
  };
}
