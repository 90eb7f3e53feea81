/**
 * The worker of a host: takes clones from its queue, has the engine make them, and answers for them.
 *
 * It holds a lock on its part of the state directory, so that the journal there is one worker's. At its end it suspends its
 * clones: nothing of them runs any more, and they are queued again. At its start it goes on with those that the one before
 * it had begun, whether that one was stopped or died, before it takes anything new. A replica that was started is nobody's
 * child and lives on.
 */
import { randomUUID } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, CloneError, CONTRACT_VERSION } from '@pgcloned/contract';
import {
  giveWay,
  keepPort,
  lookAtInstance,
  measureInstance,
  removeInstance,
  runClone,
  runPreflight,
  settleInstance,
  startInstance,
  stopInstance,
  sweepClone,
} from '@pgcloned/engine';
import { type FileLock, lockFile } from '@pgcloned/process';
import { type HostQueue, openHostQueue } from '@pgcloned/queue';
import type { Logger } from 'pino';
import { type CloneJob, type CloneToMake, startCloneJob } from './clone-job.ts';
import type { HostConfiguration } from './clone-plan.ts';
import { readHostFacts, readMachineId, rememberSharing } from './host-facts.ts';
import { type InstanceEngine, type Instances, watchInstances } from './instances.ts';
import { openPreflights } from './preflights.ts';
import { openRunJournal, type RunJournal } from './run-journal.ts';
import { makeSlots } from './slots.ts';
import { claimInterruptedRuns, reportEndedRuns, sweepInterruptedRuns } from './sweep.ts';

/** How long the last records may take on their way to Redis when the worker stops; the journal keeps them otherwise. */
const LAST_REPORTS_MS_MAX = 2_000;

const DAY_MS = 86_400_000;

export interface WorkerOptions extends HostConfiguration {
  /** The name of this host and of its queue. */
  readonly host: string;
  readonly redisUrl: string;
  readonly logger: Logger;
  /** Ends the start; a worker that runs is ended by disposing of it. */
  readonly signal: AbortSignal;
}

/** What makes clones, and what is done with them afterwards. */
export interface Engine extends InstanceEngine {
  readonly runClone: typeof runClone;
  readonly runPreflight: typeof runPreflight;
  readonly sweepClone: typeof sweepClone;
}

/** Disposing of it ends its runs, tidily, and settles when they are gone. */
export type RunningWorker = AsyncDisposable;

/**
 * Settles when the worker takes jobs. Waits for Redis as long as it is away.
 *
 * @throws {CloneError} `STATE_DIRECTORY_BUSY` if another worker uses the state directory, `CONFIGURATION_INVALID` if
 *   another machine has the name of this host.
 * @throws The signal's reason if `signal` aborts.
 */
export async function startWorker(
  options: WorkerOptions,
  engine: Engine = {
    ...{ runClone, runPreflight, sweepClone },
    ...{ lookAtInstance, measureInstance, startInstance, stopInstance, settleInstance },
    ...{ removeInstance, giveWay, keepPort },
  },
): Promise<RunningWorker> {
  const { host, stateDirectory, worker, sources, redisUrl, signal } = options;
  const log = options.logger.child({ part: 'worker' });
  await using parts = new AsyncDisposableStack();
  await mkdir(stateDirectory, { recursive: true, mode: 0o700 });
  parts.use(await lockState(stateDirectory, signal));
  const machineId = await readMachineId(stateDirectory);
  const workerId = randomUUID();
  const journal = await openRunJournal({
    directory: join(stateDirectory, 'runs'),
    onUnreadable: (path, cause) => {
      log.error({ path, err: cause }, 'a file of the journal cannot be read');
    },
  });
  const sweep = { journal, host: options, sweepClone: engine.sweepClone, log, signal };
  const interrupted = await sweepInterruptedRuns(sweep);

  const jobs = new Map<string, CloneJob>();
  const slots = makeSlots(worker.concurrency);
  let stopping = false;
  /** Null until those of the worker before are known. */
  let instances: Instances | null = null;
  const ended = (): Instances => {
    if (instances === null) throw new Error('no clone is made before the ended ones are known');
    return instances;
  };
  let isRedisEmpty = false;
  /** Attach or start: a job may be given out twice, its clone is made once. */
  const make = async (toMake: CloneToMake): Promise<void> => {
    const { id } = toMake.clone;
    const job =
      jobs.get(id) ??
      startCloneJob(toMake, {
        queue,
        journal,
        slots,
        workerId,
        host: options,
        runClone: engine.runClone,
        sweepClone: engine.sweepClone,
        makeRoom: async (dataDirectory) => {
          await ended().makeRoom(dataDirectory);
        },
        giveWay: async (id, o) => await ended().giveWay(id, o),
        takeBack: async (id, o) => {
          await ended().takeBack(id, o);
        },
        log,
        // What is begun is put away to its end; the worker waits for it.
        signal: new AbortController().signal,
      });
    jobs.set(id, job);
    await job.reported;
    jobs.delete(id);
    instances?.attend(id);
  };
  const onError = (error: unknown) => {
    log.warn({ err: error }, 'queue');
  };
  const sharing = rememberSharing();
  const preflights = openPreflights(options, journal, engine.runPreflight);
  const run = async (clone: Clone, contract: number): Promise<void> => {
    // It stays queued, and the next worker of this host gives it a job again.
    if (!stopping) await make({ clone, contract, before: null });
  };
  const queue: HostQueue = parts.use(
    await openHostQueue({
      redisUrl,
      host,
      machineId,
      workerId,
      concurrency: worker.concurrency,
      facts: async () =>
        await readHostFacts({
          name: host,
          machineId,
          workerId,
          postgresBin: worker.postgresBin,
          dataRoots: worker.dataRoots,
          sources: Object.keys(sources),
          allowedSettings: worker.allowedSettings,
          concurrency: worker.concurrency,
          runningClones: [...jobs].filter(([, job]) => job.isRunning()).map(([id]) => id),
          sharing,
          clones: (instances?.runsWithFiles() ?? []).map(({ clone }) => clone),
        }),
      run,
      preflight: preflights.look,
      onCancelRequested: (id) => {
        jobs.get(id)?.cancel();
      },
      onTransferWished: (id, wish) => {
        jobs.get(id)?.changeTransfer(wish);
      },
      onInstanceWished: (id, wish) => {
        if (wish.protected !== undefined) jobs.get(id)?.protect(wish.protected);
        instances?.attend(id);
      },
      onRedisEmpty: () => {
        isRedisEmpty = true;
        instances?.tellAgain();
      },
      onFenceLost: (id) => {
        jobs.get(id)?.giveUp();
      },
      onError,
      signal,
    }),
  );
  parts.use(pruneEveryDay(journal, log));
  parts.defer(async () => {
    stopping = true;
    await queue.stopTaking();
    await preflights[Symbol.asyncDispose]();
    const running = [...jobs.values()];
    for (const job of running) job.suspend();
    await Promise.all(running.map(async ({ finished }) => await finished));
    await Promise.race([
      Promise.all(running.map(async ({ reported }) => await reported)),
      delay(LAST_REPORTS_MS_MAX, undefined, { ref: false }),
    ]);
  });
  const claimed = await claimInterruptedRuns(interrupted, { ...sweep, queue, workerId });
  await reportEndedRuns({ ...sweep, queue, workerId });
  instances = parts.use(
    await watchInstances({
      host: options,
      journal,
      queue,
      engine,
      givingWay: claimed.flatMap(({ clone }) => clone.resetOf ?? []),
      isBeingMade: (id) => jobs.has(id),
      log,
    }),
  );
  if (isRedisEmpty) instances.tellAgain();
  for (const { clone, hasStopped } of interrupted) {
    const goesOn = claimed.some((run) => run.clone.id === clone.id);
    if (!goesOn && hasStopped && clone.resetOf !== null)
      void instances.takeBack(clone.resetOf, { starts: true });
  }
  for (const before of claimed) {
    log.info({ cloneId: before.clone.id, attempt: before.clone.attempt }, 'clone goes on');
    void make({ clone: before.clone, contract: CONTRACT_VERSION, before });
  }
  queue.start();
  log.info({ host, concurrency: worker.concurrency, workerId }, 'worker takes jobs');
  return parts.move();
}

function pruneEveryDay(journal: RunJournal, log: Logger): Disposable {
  const prune = () => {
    journal.prune().catch((error: unknown) => {
      log.error({ err: error }, 'old files of the journal could not be removed');
    });
  };
  prune();
  return setInterval(prune, DAY_MS);
}

async function lockState(stateDirectory: string, signal: AbortSignal): Promise<FileLock> {
  const lock = await lockFile(join(stateDirectory, 'worker.lock'), { signal });
  if (lock !== null) return lock;
  throw new CloneError('STATE_DIRECTORY_BUSY', `another worker uses ${stateDirectory}`, {
    facts: { stateDirectory },
    hint: 'Stop the other one, or give this one a stateDirectory and a host of its own.',
  });
}
