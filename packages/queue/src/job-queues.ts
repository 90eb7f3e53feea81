/**
 * The BullMQ queues of the hosts, from the side of whoever adds jobs.
 *
 * Each host has two: one for its clones, and a short one for what must not wait behind an hour-long copy. A job carries
 * the id of a clone or of a preflight and the version of the contract, nothing else, and is removed when it ends: the record
 * tells the rest.
 */
import { type Clone, CONTRACT_VERSION } from '@pgcloned/contract';
import { Queue } from 'bullmq';
import type { Redis } from 'ioredis';
import { BULL_PREFIX, clonesQueueName, controlQueueName } from './keys.ts';
import { queueUnavailable, translated } from './redis-connection.ts';

export interface CloneJob {
  readonly id: string;
  readonly contract: number;
}

export interface JobQueues extends AsyncDisposable {
  /** Does nothing if the attempt has a job already. */
  readonly addClone: (clone: Clone) => Promise<void>;
  /** Takes the job out again; without effect once a worker has it. */
  readonly removeClone: (clone: Clone) => Promise<void>;
  /** Makes the worker look at the wishes that are stored with the record. */
  readonly wakeForWish: (clone: Clone) => Promise<void>;
  /** The same for a wish for the instance of a clone. */
  readonly wakeForInstance: (clone: Clone) => Promise<void>;
  readonly addPreflight: (host: string, id: string) => Promise<void>;
}

/** BullMQ waits for a connection that was never ready, whatever the connection's own limits are. */
const ANSWER_MS_MAX = 5_000;

/** The connection is shared: BullMQ leaves it open when a queue closes. */
export function openJobQueues(o: {
  readonly redis: Redis;
  readonly onError: (error: Error) => void;
}): JobQueues {
  const queues = new Map<string, Queue<CloneJob>>();
  const queueNamed = (name: string): Queue<CloneJob> => {
    const known = queues.get(name);
    if (known !== undefined) return known;
    const queue = new Queue<CloneJob>(name, {
      connection: o.redis,
      prefix: BULL_PREFIX,
      defaultJobOptions: { attempts: 1, removeOnComplete: true, removeOnFail: true },
      streams: { events: { maxLen: 100 } },
    });
    queue.on('error', o.onError);
    queues.set(name, queue);
    return queue;
  };
  return {
    addClone: async (clone) => {
      const queue = queueNamed(clonesQueueName(clone.host));
      const data = { id: clone.id, contract: CONTRACT_VERSION };
      await inTime(queue.add('clone', data, { jobId: jobId(clone) }));
    },
    removeClone: async (clone) => {
      await inTime(queueNamed(clonesQueueName(clone.host)).remove(jobId(clone)));
    },
    wakeForWish: async (clone) => {
      const queue = queueNamed(controlQueueName(clone.host));
      const data = { id: clone.id, contract: CONTRACT_VERSION };
      await inTime(queue.add('wish', data, { jobId: `wish-${jobId(clone)}` }));
    },
    wakeForInstance: async (clone) => {
      const data = { id: clone.id, contract: CONTRACT_VERSION };
      // Without an id of its own: beside one that is being worked on a second one counts.
      await inTime(queueNamed(controlQueueName(clone.host)).add('wish', data));
    },
    addPreflight: async (host, id) => {
      const data = { id, contract: CONTRACT_VERSION };
      await inTime(queueNamed(controlQueueName(host)).add('preflight', data, { jobId: id }));
    },
    [Symbol.asyncDispose]: async () => {
      // With Redis away they reject or do not settle; nothing of ours hangs on them then.
      await Promise.allSettled(
        [...queues.values()].map(async (queue) => await inTime(queue.close())),
      );
    },
  };
}

function jobId(clone: Clone): string {
  return `${clone.id}-${String(clone.attempt)}`;
}

async function inTime<T>(work: Promise<T>): Promise<T> {
  const { promise: expired, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    reject(queueUnavailable('the queue did not answer in time'));
  }, ANSWER_MS_MAX);
  try {
    return await Promise.race([work, expired]);
  } catch (error) {
    throw translated(error);
  } finally {
    clearTimeout(timer);
  }
}
