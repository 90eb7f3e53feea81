/**
 * Which way the connections of a copy take: straight, or through the relay as long as there is an upper limit, since the
 * relay costs time.
 *
 * Another limit holds at once. What runs straight when the first one is set has to be stopped and to go on through the
 * relay; what runs through it when there is none any more stays there, unhindered.
 */
import type { TransferControl } from '../transfer-control.ts';
import { type Endpoint, type RateRelay, startRateRelay } from './rate-relay.ts';

export interface Road extends AsyncDisposable {
  /** Where a connection that is made now leads. */
  readonly endpoint: () => Promise<Endpoint>;
  /** Aborts when a connection that is made from now on may be on the wrong way. */
  readonly closed: () => AbortSignal;
}

export function openRoad(to: Endpoint, transfer: TransferControl): Road {
  let relay: Promise<RateRelay> | null = null;
  let straight = new AbortController();
  let { maxRate } = transfer.limits();
  const watching = transfer.onChange(() => {
    const before = maxRate;
    ({ maxRate } = transfer.limits());
    // One that did not start fails whoever wants to go through it.
    relay?.then(({ limit }) => limit(maxRate)).catch(() => undefined);
    if (before !== null || maxRate === null) return;
    straight.abort(new Error('there is an upper limit now'));
    straight = new AbortController();
  });
  return {
    endpoint: async () => {
      if (maxRate === null) return to;
      relay ??= startRateRelay({ to, bytesPerSecond: maxRate });
      return await relay;
    },
    closed: () => straight.signal,
    [Symbol.asyncDispose]: async () => {
      watching[Symbol.dispose]();
      const started = await relay?.catch(() => null);
      await started?.[Symbol.asyncDispose]();
    },
  };
}
