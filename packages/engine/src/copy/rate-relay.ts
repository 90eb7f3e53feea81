/**
 * An upper limit for all rsync connections together: a relay on the loopback interface through which they go, with one
 * token bucket for all of them.
 *
 * rsync's own limit is per process, so it would change its meaning with every worker that starts or ends. Only the
 * direction towards us is limited: requests are small. The relay adds no trust: the daemon still asks for the password.
 */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** The bucket holds this much of a second: a burst no one notices, and no jerks. */
const BURST_SECONDS = 0.1;

export interface RateRelay extends AsyncDisposable {
  /** Where clients connect instead. */
  readonly address: string;
  readonly port: number;
}

export async function startRateRelay({
  to,
  bytesPerSecond,
}: {
  readonly to: { readonly address: string; readonly port: number };
  readonly bytesPerSecond: number;
}): Promise<RateRelay> {
  const bucket = makeBucket(bytesPerSecond);
  const sockets = new Set<Socket>();
  const closing = new AbortController();
  const server: Server = createServer((client) => {
    const upstream = connect({ host: to.address, port: to.port });
    upstream.setNoDelay(true);
    client.setNoDelay(true);
    for (const [one, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(one);
      // The other end learns of a broken connection by losing its own; rsync says what that means.
      one.on('error', () => other.destroy());
      one.on('close', () => {
        sockets.delete(one);
        if (one === client) other.destroy();
      });
    }
    client.pipe(upstream);
    // A socket that is destroyed in the middle ends the loop; its own handlers have said all.
    void pour(upstream, client, bucket, closing.signal).catch(() => client.destroy());
  });
  server.listen({ host: '127.0.0.1', port: 0 });
  await once(server, 'listening');
  return {
    address: '127.0.0.1',
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      closing.abort();
      for (const socket of sockets) socket.destroy();
      const closed = once(server, 'close');
      server.close();
      await closed;
    },
  };
}

async function pour(from: Socket, to: Socket, bucket: Bucket, signal: AbortSignal): Promise<void> {
  for await (const chunk of from) {
    const bytes = (chunk as Buffer).length;
    await bucket.take(bytes, signal);
    if (!to.write(chunk as Buffer)) await once(to, 'drain', { signal });
  }
  to.end();
}

interface Bucket {
  readonly take: (bytes: number, signal: AbortSignal) => Promise<void>;
}

/** Takers may overdraw; whoever overdraws waits until the debt is paid, so that chunks of any size get through. */
function makeBucket(bytesPerSecond: number): Bucket {
  const capacity = bytesPerSecond * BURST_SECONDS;
  let tokens = capacity;
  let filledAtMs = performance.now();
  const refill = () => {
    const nowMs = performance.now();
    tokens = Math.min(capacity, tokens + ((nowMs - filledAtMs) / 1000) * bytesPerSecond);
    filledAtMs = nowMs;
  };
  return {
    async take(bytes, signal) {
      refill();
      tokens -= bytes;
      while (tokens < 0) {
        await delay(Math.max(1, (-tokens / bytesPerSecond) * 1000), undefined, { signal });
        refill();
      }
    },
  };
}
