import { addAbortListener } from 'node:events';

/** Settles like `promise`, or rejects with the signal's reason. For what cannot be stopped, only no longer waited for. */
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
