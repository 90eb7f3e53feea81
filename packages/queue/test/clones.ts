/** Clones, hosts and waiting, for the tests of this package. */
import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import {
  type Clone,
  CloneSpec,
  type CloneSpecInput,
  type HostFacts,
  newClone,
} from '@pgcloned/contract';
import type { HostQueueOptions } from '../src/host-queue.ts';
import { type HostQueue, openHostQueue } from '../src/index.ts';

let created = 0;

/** Later ones have higher ids, as UUIDv7 promises. */
export function someClone(
  target: Partial<CloneSpecInput['target']> = {},
  more: Partial<CloneSpecInput> = {},
): Clone {
  created += 1;
  const id = `0192f3c8${created.toString(16).padStart(8, '0')}${randomBytes(8).toString('hex')}`;
  const spec = CloneSpec.parse({
    source: { name: 'orders' },
    target: { host: 'replica-1', dataDirectory: `/srv/${id}`, ...target },
    ...more,
  });
  return newClone({ id, spec, createdAt: new Date().toISOString() });
}

export function running(clone: Clone): Clone {
  return { ...clone, state: 'running', startedAt: new Date().toISOString(), phase: 'copy-files' };
}

export function ended(clone: Clone, state: 'succeeded' | 'failed' | 'cancelled'): Clone {
  return { ...clone, state, endedAt: new Date().toISOString() };
}

export function published(clone: Clone): Clone {
  const phases = clone.progress.phases.map((phase) =>
    phase.name === 'publish' ? { ...phase, state: 'done' as const } : phase,
  );
  return { ...clone, progress: { ...clone.progress, phases } };
}

function hostFacts(facts: Partial<HostFacts> = {}): HostFacts {
  return {
    name: 'replica-1',
    machineId: 'machine-1',
    workerId: 'worker-1',
    version: '0.1.0',
    contract: { min: 1, max: 1 },
    postgresMajors: [15],
    dataRoots: ['/srv'],
    sources: ['orders'],
    filesystems: [{ path: '/srv', totalBytes: 100, freeBytes: 50, reflink: null }],
    concurrency: 2,
    runningClones: [],
    ...facts,
  };
}

/** Claims each clone that it is given, as workers do, and then does what `run` says. */
export async function openWorker(
  redisUrl: string,
  options: Partial<HostQueueOptions> = {},
): Promise<HostQueue> {
  const { host = 'replica-1', machineId = 'machine-1', workerId = 'worker-1' } = options;
  const queue: HostQueue = await openHostQueue({
    redisUrl,
    host,
    machineId,
    workerId,
    concurrency: 2,
    facts: () => Promise.resolve(hostFacts({ name: host, machineId, workerId })),
    preflight: () => Promise.reject(new Error('no test asks for it')),
    onCancelRequested: () => {},
    onTransferWished: () => {},
    onInstanceWished: () => {},
    onRedisEmpty: () => {},
    onFenceLost: () => {},
    onError: () => {},
    signal: new AbortController().signal,
    ...options,
    run: async (clone, contract) => {
      await queue.confirm(running(clone), { attempt: clone.attempt, workerId });
      await options.run?.(clone, contract);
    },
  });
  return queue;
}

/** Asks until the answer is true; a bounded poll, for what nobody announces. */
export async function eventually(holds: () => Promise<boolean> | boolean): Promise<void> {
  const deadlineMs = performance.now() + 60_000;
  while (!(await holds())) {
    if (performance.now() > deadlineMs) throw new Error('it never came true');
    await delay(20);
  }
}
