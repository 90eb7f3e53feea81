/**
 * An upper limit for all connections of a copy together: a relay on the loopback interface through which they go, with one
 * token bucket for all of them.
 *
 * rsync's own limit is per process, so it would change its meaning with every worker that starts or ends. Only the
 * direction towards us is limited: requests are small. The relay adds no trust: the other end still asks who is there.
 */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** The bucket holds this much of a second: a burst no one notices, and no jerks. */
const BURST_SECONDS = 0.1;

export interface Endpoint {
  readonly address: string;
  readonly port: number;
}

/** Clients connect to it instead. */
export interface RateRelay extends Endpoint, AsyncDisposable {
  /** Another limit, at once and for open connections too; null: none. Nothing that was saved or owed is carried over. */
  readonly limit: (bytesPerSecond: number | null) => void;
}

export async function startRateRelay({
  to,
  bytesPerSecond,
}: {
  readonly to: Endpoint;
  readonly bytesPerSecond: number | null;
}): Promise<RateRelay> {
  const bucket = makeBucket(bytesPerSecond);
  const sockets = new Set<Socket>();
  const server: Server = createServer((client) => {
    const upstream = connect({ host: to.address, port: to.port });
    upstream.setNoDelay(true);
    client.setNoDelay(true);
    const gone = new AbortController();
    client.once('close', () => {
      gone.abort();
    });
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
    void pour(upstream, client, bucket, gone.signal).catch(() => client.destroy());
  });
  server.listen({ host: '127.0.0.1', port: 0 });
  await once(server, 'listening');
  return {
    address: '127.0.0.1',
    port: (server.address() as AddressInfo).port,
    limit: bucket.limit,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      const closed = once(server, 'close');
      server.close();
      await closed;
    },
  };
}

async function pour(from: Socket, to: Socket, bucket: Bucket, signal: AbortSignal): Promise<void> {
  for await (const chunk of from as AsyncIterable<Buffer>) {
    for (let sent = 0; sent < chunk.length; ) {
      const piece = chunk.subarray(sent, sent + bucket.pieceBytes());
      await bucket.take(piece.length, signal);
      if (!to.write(piece)) await once(to, 'drain', { signal });
      sent += piece.length;
    }
  }
  to.end();
}

interface Bucket {
  readonly take: (bytes: number, signal: AbortSignal) => Promise<void>;
  /** What to take at a time, so that many connections at a low rate get something each before one counts as stalled. */
  readonly pieceBytes: () => number;
  readonly limit: RateRelay['limit'];
}

/** Who takes may overdraw once nothing is owed; the next one waits until that is paid. They come one after the other. */
function makeBucket(limit: number | null): Bucket {
  let bytesPerSecond = limit;
  let tokens = 0;
  let filledAtMs = performance.now();
  let limited = new AbortController();
  let lastInLine: Promise<void> = Promise.resolve();
  const refill = (rate: number) => {
    const nowMs = performance.now();
    const filled = tokens + ((nowMs - filledAtMs) / 1000) * rate;
    tokens = Math.min(rate * BURST_SECONDS, filled);
    filledAtMs = nowMs;
  };
  const takeNow = async (bytes: number, signal: AbortSignal) => {
    while (bytesPerSecond !== null) {
      signal.throwIfAborted();
      refill(bytesPerSecond);
      if (tokens >= 0) {
        tokens -= bytes;
        return;
      }
      const waitMs = Math.max(1, (-tokens / bytesPerSecond) * 1000);
      // Another limit ends the wait, which was for the old one.
      await delay(waitMs, undefined, {
        signal: AbortSignal.any([signal, limited.signal]),
      }).catch(() => {});
    }
  };
  return {
    pieceBytes: () =>
      bytesPerSecond === null
        ? Number.POSITIVE_INFINITY
        : Math.max(1, Math.floor(bytesPerSecond * BURST_SECONDS)),
    async take(bytes, signal) {
      // Without a line whoever has just got something would be the first to ask again, and others get nothing.
      const turn = lastInLine.then(async () => {
        await takeNow(bytes, signal);
      });
      lastInLine = turn.catch(() => {});
      await turn;
    },
    limit(next) {
      bytesPerSecond = next;
      tokens = 0;
      filledAtMs = performance.now();
      limited.abort();
      limited = new AbortController();
    },
  };
}
