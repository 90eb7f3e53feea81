/** A worker whose engine does what the test says; Redis, journal and locks are real. */

import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  type Clone,
  type CloneResult,
  CloneSpec,
  type CloneSpecInput,
  Configuration,
  LocalSource,
  localSource,
  newClone,
  SourceConfiguration,
} from '@pgcloned/contract';
import type { CloneObserver, ClonePlan, TransferControl } from '@pgcloned/engine';
import { pino } from 'pino';
import type { Engine, WorkerOptions } from '../src/index.ts';

let created = 0;

export function someClone(more: Partial<CloneSpecInput> = {}): Clone {
  created += 1;
  const id = `0192f3c8${created.toString(16).padStart(8, '0')}${randomBytes(8).toString('hex')}`;
  const spec = CloneSpec.parse({
    source: { name: 'orders' },
    target: { host: 'replica-1', dataDirectory: `/srv/${id}` },
    ...more,
  });
  return newClone({ id, spec, createdAt: new Date().toISOString() });
}

export function workerOptions(o: {
  readonly redisUrl: string;
  readonly directory: string;
  readonly concurrency?: number;
}): WorkerOptions {
  const { worker } = Configuration.parse({ worker: { concurrency: o.concurrency ?? 2 } });
  const orders = { host: 'db1', passFile: '/etc/pass', ssh: { privateKeyFile: '/etc/key' } };
  const here = { local: true, dataDirectory: '/srv/orders' } as const;
  const sources = {
    orders: SourceConfiguration.parse(orders),
    here: localSource(LocalSource.parse(here), { defaultUser: 'dba' }),
  };
  return {
    file: '/etc/pgcloned.yaml',
    sshAgentSocket: null,
    host: 'replica-1',
    stateDirectory: join(o.directory, 'state'),
    worker: { ...worker, dataRoots: [o.directory] },
    sources,
    redisUrl: o.redisUrl,
    logger: pino({ level: 'silent' }),
    signal: new AbortController().signal,
  };
}

/** What the engine was asked for, and the way to let it go on. */
export interface EngineCall {
  readonly plan: ClonePlan;
  readonly observer: CloneObserver;
  readonly signal: AbortSignal;
  readonly transferControl: TransferControl | undefined;
  readonly succeed: () => void;
  readonly fail: (error: unknown) => void;
}

/** Every clone waits until the test ends it, or its signal aborts. */
export function playedEngine(): Engine & {
  readonly calls: EngineCall[];
  /** Each with what becomes of it. */
  readonly swept: string[];
} {
  const calls: EngineCall[] = [];
  const swept: string[] = [];
  return {
    calls,
    swept,
    runClone: async (plan, { observer, signal, transferControl }) => {
      const { promise, resolve, reject } = Promise.withResolvers<CloneResult>();
      signal.addEventListener('abort', () => {
        reject(signal.reason as Error);
      });
      if (signal.aborted) reject(signal.reason as Error);
      const succeed = () => {
        resolve(someResult(plan));
      };
      calls.push({ plan, observer, signal, transferControl, succeed, fail: reject });
      return await promise;
    },
    runPreflight: () => Promise.reject(new Error('no test asks for it')),
    lookAtInstance: () => Promise.resolve({ state: 'absent', port: null }),
    startInstance: () => Promise.reject(new Error('no test asks for it')),
    stopInstance: () => Promise.reject(new Error('no test asks for it')),
    settleInstance: () => Promise.resolve(),
    keepPort: () => Promise.resolve(),
    measureInstance: () => Promise.resolve(null),
    removeInstance: () => Promise.reject(new Error('no test asks for it')),
    giveWay: () => Promise.reject(new Error('no test asks for it')),
    sweepClone: (plan, { becomes }) => {
      swept.push(`${plan.id} ${becomes}`);
      return Promise.resolve({ published: false, leftovers: [] });
    },
  };
}

/** As the engine's own: publication ends the phase. */
export function publishNow(observer: CloneObserver): void {
  observer.phaseStarted('publish');
  observer.published();
  observer.phaseEnded('publish', 'done');
}

function someResult(plan: ClonePlan): CloneResult {
  return {
    dataDirectory: plan.spec.target.dataDirectory,
    connectionString: null,
    systemIdentifier: '7300000000000000000',
    timeline: 1,
    startLsn: '0/1000028',
    stopLsn: '0/1000100',
    bytes: 100,
    files: 1,
    wireBytes: 100,
    keptBytes: 0,
    compression: 'none',
    source: { address: 'db1:5432', role: 'primary' },
    durationMs: 1,
    warnings: [],
    verification: { transfer: 'passed', wal: 'passed', pages: 'skipped', boot: 'skipped' },
  };
}

/** Asks until the answer is true; a bounded poll, for what nobody announces. */
export async function eventually(holds: () => Promise<boolean> | boolean): Promise<void> {
  const deadlineMs = performance.now() + 60_000;
  while (!(await holds())) {
    if (performance.now() > deadlineMs) throw new Error('it never came true');
    await delay(20);
  }
}
