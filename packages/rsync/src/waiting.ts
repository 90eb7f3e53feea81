/** Waiting that ends: by the thing itself, by the caller's signal, or by a limit. */
import { addAbortListener } from 'node:events';

/**
 * Runs `work` with a signal that aborts with the caller's, or with `expired()` once the limit has passed since it was begun
 * or has last said that it moves. It settles when `work` does, so `work` has to obey its signal.
 */
export async function withLimit<T>(
  work: (signal: AbortSignal, moves: () => void) => Promise<T>,
  {
    signal,
    limitMs,
    expired,
  }: {
    readonly signal: AbortSignal;
    readonly limitMs: number;
    readonly expired: () => Error;
  },
): Promise<T> {
  signal.throwIfAborted();
  const limited = new AbortController();
  const timer = setTimeout(() => {
    limited.abort(expired());
  }, limitMs);
  using _ = addAbortListener(signal, () => {
    limited.abort(signal.reason);
  });
  try {
    return await work(limited.signal, () => {
      timer.refresh();
    });
  } finally {
    clearTimeout(timer);
  }
}
