/** Waiting that a signal can end, for what cannot itself be stopped. */
import { addAbortListener } from 'node:events';

/** Settles like `promise`, or rejects with the signal's reason. */
export async function unlessAborted<Value>(
  promise: Promise<Value>,
  signal: AbortSignal,
): Promise<Value> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  using _ = addAbortListener(signal, () => {
    aborted.reject(signal.reason as Error);
  });
  return await Promise.race([promise, aborted.promise]);
}
