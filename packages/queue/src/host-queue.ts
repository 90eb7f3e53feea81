/**
 * The worker's side of the queue: the jobs of one host, its registration, its records.
 *
 * Redis dispatches and is never the truth of a run. Its loss neither ends nor doubles a clone: commands wait until it is
 * back, records are repeated whole with every heartbeat, a lost lock of BullMQ is nothing but a line in the log, and a
 * queued record of this host without a job gets its job again. A job that comes twice is given to `run` twice, which has
 * to attach to the run that it knows.
 *
 * BullMQ gives each Worker object of concurrency 1 its own lock renewal; with more than one job in an object a job that
 * is run again loses it when the first run ends. Hence one object per slot.
 */
import {
  type Clone,
  CloneError,
  CloneId,
  type CloneSpec,
  type HostFacts,
  hasEnded,
  type InstanceWish,
  type LogLine,
  type PreflightReport,
  type TransferLimits,
} from '@pgcloned/contract';
import { unlessAborted } from '@pgcloned/process';
import { Worker } from 'bullmq';
import { HEARTBEAT_MS, ONLINE_MS } from './host-registry.ts';
import { type CloneJob, openJobQueues } from './job-queues.ts';
import { BULL_PREFIX, clonesQueueName, controlQueueName, openKey, wishedKey } from './keys.ts';
import { answerPreflight } from './preflight-exchange.ts';
import { type PublishOutcome, startRecordPublisher, toWrite } from './record-publisher.ts';
import { ask, connectPatiently, reportOutagesOnce } from './redis-connection.ts';
import {
  type Fence,
  leaveHost,
  registerHost,
  type UpdateEndedOutcome,
  updateEndedRecord,
  writeRecord,
} from './scripts.ts';
import { RecordUnreadableError, readClone } from './stored-clone.ts';

/** Longer than most outages: a job whose lock runs out is given out again, which attaching makes harmless but noisy. */
const LOCK_MS = 300_000;
const STALLED_CHECK_MS = 60_000;

/** How BullMQ speaks of a job whose keys or lock went with an outage. */
const JOB_LOST = /missing (?:key|lock) for job|renew lock/i;

const RECONCILE_MS = 15_000;

/** BullMQ closes by waiting for answers of Redis; with Redis away they never come. */
const CLOSE_MS_MAX = 3_000;

type Job = { readonly name: string; readonly data: CloneJob };

export interface OpenClone {
  readonly clone: Clone;
  readonly fence: Fence;
  readonly cancelRequested: boolean;
  readonly wishedTransfer: TransferLimits | null;
  readonly wishedInstance: InstanceWish | null;
}

export interface HostQueueOptions {
  readonly redisUrl: string;
  readonly host: string;
  readonly machineId: string;
  readonly workerId: string;
  readonly concurrency: number;
  /** What the host is and has, for its registration; asked with every heartbeat. */
  readonly facts: () => Promise<HostFacts>;
  /**
   * Does or attaches to the work for a clone that has not ended, and settles when there is nothing more to do for it.
   * `contract` is the version that the job was written with.
   */
  readonly run: (clone: Clone, contract: number) => Promise<void>;
  /** Somebody wants this clone to end. Said again until its record says so. */
  readonly onCancelRequested: (id: string) => void;
  /** Somebody wants its transfer to go on like this. Said again and again, until it has ended. */
  readonly onTransferWished: (id: string, wish: TransferLimits) => void;
  /** Somebody wants something of the instance of this clone, which may or may not have ended. */
  readonly onInstanceWished: (id: string, wish: InstanceWish) => void;
  /** Redis knows nothing of this host: it is new, or Redis has lost everything. */
  readonly onRedisEmpty: () => void;
  /** What stands against a clone; what it throws is told to the asker. Several may be asked for at a time. */
  readonly preflight: (spec: CloneSpec, id: string) => Promise<PreflightReport>;
  /** The record of this clone belongs to somebody else now. */
  readonly onFenceLost: (id: string) => void;
  /** Hears of each outage once, and of every other error. */
  readonly onError: (error: Error) => void;
  /** Ends the wait for Redis at the start. */
  readonly signal: AbortSignal;
}

export interface HostQueue extends AsyncDisposable {
  /** Begins to take jobs. */
  readonly start: () => void;
  /** Takes no more jobs; those that were taken go on. */
  readonly stopTaking: () => Promise<void>;
  /** The records of this host that have not ended. */
  readonly openClones: () => Promise<readonly OpenClone[]>;
  /**
   * The record of a clone of this host, ended or not; undefined if there is none.
   *
   * @throws {Error} If it cannot be read.
   */
  readonly read: (id: string) => Promise<OpenClone | undefined>;
  /** The clones of this host for whose instance something is wished. */
  readonly wishedInstances: () => Promise<readonly string[]>;
  /**
   * Writes what has become of the instance of a clone that has ended. Waits for Redis.
   *
   * @param o.done The wish that was carried out; null: none.
   * @param o.unlessWished Not if somebody wishes for something else by now: that is `wished`. Afterwards nobody can who does
   *   not know of it.
   * @returns `unknown`: the record was forgotten, and stays so.
   */
  readonly updateEnded: (
    clone: Clone,
    fence: Fence,
    o: { readonly done: InstanceWish | null; readonly unlessWished?: boolean },
  ) => Promise<UpdateEndedOutcome>;
  /** Publishes a record some time soon; the latest wins. */
  readonly publish: (clone: Clone, fence: Fence) => void;
  /** Publishes a record and settles when Redis has taken or refused it, however long that takes. */
  readonly confirm: (clone: Clone, fence: Fence) => Promise<PublishOutcome>;
  /** For a clone whose record was published and has not ended; the oldest lines go if Redis is away for long. */
  readonly appendLog: (id: string, line: LogLine) => void;
}

/**
 * Registers the host. Waits for Redis as long as it is away.
 *
 * @throws {CloneError} `CONFIGURATION_INVALID` if another machine with this name is alive.
 * @throws The signal's reason if `signal` aborts.
 */
export async function openHostQueue(options: HostQueueOptions): Promise<HostQueue> {
  const { redisUrl, host, machineId, workerId } = options;
  const closing = new AbortController();
  const { onError, onReady } = reportOutagesOnce(redisUrl, options.onError);
  const connection = { redisUrl, closing: closing.signal, onError };
  const redis = connectPatiently(connection);
  redis.on('ready', onReady);
  const unreadable = new Set<string>();
  const jobs = openJobQueues({ redis, onError });
  const publisher = startRecordPublisher({
    write: async (record, fence, lines) => await writeRecord(redis, record, fence, lines),
    onCancelRequested: options.onCancelRequested,
    onTransferWished: options.onTransferWished,
    onFenceLost: options.onFenceLost,
    onError,
  });

  let hasLeft = false;
  const registerNow = async (): Promise<void> => {
    const facts = JSON.stringify(await options.facts());
    // Whoever has said goodbye must not come back with a late word.
    if (hasLeft) return;
    const registered = await registerHost(redis, {
      name: host,
      machineId,
      workerId,
      facts,
      onlineMs: ONLINE_MS,
    });
    if (registered === 'taken') throw nameTaken(host);
    if (registered === 'new') options.onRedisEmpty();
  };
  let registering = Promise.resolve();
  /** One after the other: facts that were gathered earlier must not arrive later. */
  const register = (): Promise<void> => {
    registering = registering.catch(() => undefined).then(registerNow);
    return registering;
  };
  try {
    await unlessAborted(register(), options.signal);
  } catch (error) {
    closing.abort();
    redis.disconnect();
    throw error;
  }

  const readOwn = async (id: string): Promise<OpenClone | undefined> => {
    const stored = await readClone(redis, id, { partly: false });
    if (stored === undefined) return undefined;
    const { host: owner, spec } = stored.clone;
    if (owner === host && spec.target.host === host) return stored;
    throw new RecordUnreadableError(`the record of clone ${id} is not for host ${host}`);
  };

  let taking = false;
  let nameIsOurs = true;
  const takeClone = async ({ data }: Job): Promise<void> => {
    // A worker that waits for a job when it is paused still gets one. Its record stays queued and finds a job again.
    if (!taking || !nameIsOurs) return;
    const id = CloneId.parse(data.id);
    const stored = await readOwn(id);
    // Forgotten, or cancelled while it waited.
    if (stored === undefined || hasEnded(stored.clone.state)) return;
    const work = options.run(stored.clone, data.contract);
    // Or those who wait behind it would not be told why until the next heartbeat.
    register().catch(onError);
    await work;
    register().catch(onError);
  };
  const takeControl = async ({ name, data }: Job): Promise<void> => {
    const id = CloneId.parse(data.id);
    if (name === 'preflight') {
      // Beside the queue: no wish must wait for it.
      answerPreflight(redis, id, options.preflight).catch(onError);
      return;
    }
    const stored = await readOwn(id);
    if (stored?.cancelRequested === true) options.onCancelRequested(id);
    if (stored?.wishedTransfer) options.onTransferWished(id, stored.wishedTransfer);
    if (stored?.wishedInstance) options.onInstanceWished(id, stored.wishedInstance);
  };
  const newWorker = (queue: string, take: (job: Job) => Promise<void>) => {
    const worker = new Worker<CloneJob>(queue, take, {
      connection: redis,
      prefix: BULL_PREFIX,
      autorun: false,
      concurrency: 1,
      lockDuration: LOCK_MS,
      stalledInterval: STALLED_CHECK_MS,
      maxStalledCount: 1_000,
    });
    const hear = (error: Error) => {
      onError(
        JOB_LOST.test(error.message)
          ? new Error(`BullMQ has lost a job, which its clone does not need: ${error.message}`)
          : error,
      );
    };
    worker.on('error', hear);
    worker.on('failed', (_job, error) => {
      hear(error);
    });
    return worker;
  };
  const slots = Array.from({ length: options.concurrency }, () =>
    newWorker(clonesQueueName(host), takeClone),
  );
  const control = newWorker(controlQueueName(host), takeControl);
  const workers = [...slots, control];

  const openClones = async (): Promise<readonly OpenClone[]> => {
    const ids = await ask(redis.hkeys(openKey(host)));
    const clones = await Promise.all(
      ids.map(async (id) => {
        try {
          return await readOwn(id);
        } catch (error) {
          if (!(error instanceof RecordUnreadableError)) throw error;
          if (!unreadable.has(id)) onError(error);
          unreadable.add(id);
          return undefined;
        }
      }),
    );
    return clones
      .filter((stored) => stored !== undefined)
      .filter(({ clone }) => !hasEnded(clone.state));
  };

  const reconcile = async (): Promise<void> => {
    for (const { clone, fence } of await openClones()) {
      // One that waits between two attempts has its worker.
      if (clone.state === 'queued' && fence.workerId === '') await jobs.addClone(clone);
    }
  };

  const heartbeat = repeatEvery(HEARTBEAT_MS, async () => {
    publisher.repeat();
    try {
      await register();
      if (nameIsOurs) return;
      nameIsOurs = true;
      if (taking) await Promise.all(slots.map(async (slot) => await slot.resume()));
    } catch (error) {
      onError(error as Error);
      if (!(error instanceof CloneError && error.code === 'CONFIGURATION_INVALID')) return;
      // Another machine has our name now, and its jobs are not ours to take.
      nameIsOurs = false;
      await pauseSlots();
    }
  });
  const reconciliation = repeatEvery(RECONCILE_MS, async () => {
    if (taking && nameIsOurs) await reconcile().catch(onError);
  });
  const pauseSlots = async (): Promise<void> => {
    await Promise.all(slots.map(async (slot) => await slot.pause(true)));
  };

  return {
    start: () => {
      taking = true;
      reconcile().catch(onError);
      for (const worker of workers) worker.run().catch(onError);
    },
    stopTaking: async () => {
      taking = false;
      await pauseSlots();
    },
    openClones,
    read: readOwn,
    wishedInstances: async () => await ask(redis.smembers(wishedKey(host))),
    updateEnded: async (clone, fence, { done, unlessWished = false }) =>
      await updateEndedRecord(redis, toWrite(clone), fence, { done, unlessWished }),
    publish: publisher.publish,
    confirm: publisher.confirm,
    appendLog: publisher.appendLog,
    [Symbol.asyncDispose]: async () => {
      taking = false;
      hasLeft = true;
      clearInterval(heartbeat);
      clearInterval(reconciliation);
      const leaving = leaveHost(redis, host, workerId).catch(onError);
      const there = redis.status === 'ready' && (await settlesWithin(CLOSE_MS_MAX, leaving));
      closing.abort();
      publisher.close();
      const closed = workers.map(async (worker) => await worker.close(!there));
      await settlesWithin(
        CLOSE_MS_MAX,
        Promise.allSettled([...closed, jobs[Symbol.asyncDispose]()]),
      );
      redis.disconnect();
    },
  };
}

function nameTaken(host: string): CloneError {
  return new CloneError('CONFIGURATION_INVALID', `another machine is registered as host ${host}`, {
    facts: { host },
    hint: 'Give this machine a name of its own with the key host, or stop the worker on the other one. One that died counts as alive for some seconds.',
  });
}

/** Every `ms`, but never while the last time still runs: with Redis away it waits. */
function repeatEvery(ms: number, work: () => Promise<void>): NodeJS.Timeout {
  let running = false;
  return setInterval(() => {
    if (running) return;
    running = true;
    void work().finally(() => {
      running = false;
    });
  }, ms);
}

async function settlesWithin(ms: number, work: Promise<unknown>): Promise<boolean> {
  const { promise: expired, resolve } = Promise.withResolvers<false>();
  const timer = setTimeout(() => {
    resolve(false);
  }, ms);
  const settled = await Promise.race([work.then(() => true), expired]);
  clearTimeout(timer);
  return settled;
}
