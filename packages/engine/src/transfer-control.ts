/**
 * What may be changed of a copy while it runs: how many workers it has, and how much all of them may bring.
 *
 * Whoever started the engine changes it; the engine asks again before each step and listens in between. It holds over all
 * attempts, and a change is never lost: one that comes while nothing is copied holds for what is copied next.
 */
import { availableParallelism } from 'node:os';
import type { TransferLimits } from '@pgcloned/contract';

const WORKERS_MAX_BY_DEFAULT = 8;

export interface TransferControl {
  readonly limits: () => TransferLimits;
  /** Holds at once; those who listen have been told when it returns. */
  readonly change: (limits: TransferLimits) => void;
  /** Disposing of it ends the listening. */
  readonly onChange: (listener: () => void) => Disposable;
}

export function controlTransfer(limits: TransferLimits): TransferControl {
  let now = limits;
  const listeners = new Set<() => void>();
  return {
    limits: () => now,
    change: (wanted) => {
      now = wanted;
      for (const listener of listeners) listener();
    },
    onChange: (listener) => {
      listeners.add(listener);
      return { [Symbol.dispose]: () => void listeners.delete(listener) };
    },
  };
}

/** How many rsyncs that is on this host. */
export function workersOf({ workers }: TransferLimits): number {
  return workers ?? Math.min(availableParallelism(), WORKERS_MAX_BY_DEFAULT);
}
