/** Work that is repeated beside a clone: one turn at a time, until it is stopped. */
import { setTimeout as delay } from 'node:timers/promises';

export interface Repetition {
  /** No further turn; settles once the present one has ended, whose signal aborts. */
  readonly stop: () => Promise<void>;
}

/**
 * The first turn comes after one interval.
 *
 * @param intervalMs Between two turns; a function is asked before each.
 * @param onError Told when a turn fails; the next one comes all the same.
 */
export function repeat(
  intervalMs: number | (() => number),
  turn: (signal: AbortSignal) => Promise<void>,
  onError: (error: unknown) => void,
): Repetition {
  const stopping = new AbortController();
  const ended = (async () => {
    for (;;) {
      // The delay rejects when it is stopped: then the loop ends.
      const pauseMs = typeof intervalMs === 'number' ? intervalMs : intervalMs();
      await delay(pauseMs, undefined, { signal: stopping.signal }).catch(() => undefined);
      if (stopping.signal.aborted) return;
      try {
        await turn(stopping.signal);
      } catch (error) {
        onError(error);
      }
    }
  })();
  return {
    stop: async () => {
      stopping.abort();
      await ended;
    },
  };
}
