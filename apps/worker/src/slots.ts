/** How many clones run at a time, whoever gave them out: first come, first served. */
import { addAbortListener } from 'node:events';

export interface Slots {
  /**
   * Settles when it is its turn; disposing of the slot lets the next one run.
   *
   * @throws The signal's reason if `signal` aborts before.
   */
  readonly take: (signal: AbortSignal) => Promise<Disposable>;
}

export function makeSlots(count: number): Slots {
  let free = count;
  const waiting = new Set<() => void>();
  const release = () => {
    const [next] = waiting;
    if (next === undefined) free += 1;
    else next();
  };
  return {
    take: async (signal) => {
      signal.throwIfAborted();
      if (free > 0) free -= 1;
      else {
        const { promise, resolve, reject } = Promise.withResolvers<void>();
        const turn = () => {
          waiting.delete(turn);
          resolve();
        };
        waiting.add(turn);
        using _ = addAbortListener(signal, () => {
          // Too late if its turn has come: then the slot is taken, and given back by whoever sees the signal.
          if (waiting.delete(turn)) reject(signal.reason as Error);
        });
        await promise;
      }
      return { [Symbol.dispose]: release };
    },
  };
}
