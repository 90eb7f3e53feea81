/**
 * Answers that take long: event streams, and requests that wait for a change.
 *
 * Each ends when its client goes away or the API closes; Fastify alone would wait for them for ever.
 */
import { addAbortListener } from 'node:events';
import { fastifySSE } from '@fastify/sse';
import { CloneError } from '@pgcloned/contract';
import type { FastifyReply } from 'fastify';
import fastifyPlugin from 'fastify-plugin';

/** Proxies close a connection that is silent for 30 to 60 s. */
const HEARTBEAT_INTERVAL_MS = 15_000;

/** Each costs a socket and a subscription. */
const OPEN_MAX = 500;

interface LongAnswer extends Disposable {
  /** Aborts once nobody waits for the answer any longer. */
  readonly signal: AbortSignal;
}

declare module 'fastify' {
  interface FastifyInstance {
    /** @throws {CloneError} `RATE_LIMITED` while too many others are open. */
    beginLongAnswer: (reply: FastifyReply) => LongAnswer;
  }
}

export const streams = fastifyPlugin(async (app) => {
  const open = new Set<AbortController>();
  app.decorate('beginLongAnswer', (reply) => {
    if (open.size >= OPEN_MAX) {
      throw new CloneError('RATE_LIMITED', 'too many open event streams', {
        facts: { limit: OPEN_MAX },
        hint: 'Close streams that nobody reads, or ask another instance of the API.',
      });
    }
    const controller = new AbortController();
    const abort = () => {
      controller.abort(new Error('the client went away, or the API closes'));
    };
    reply.raw.once('close', abort);
    open.add(controller);
    return {
      signal: controller.signal,
      [Symbol.dispose]: () => {
        reply.raw.off('close', abort);
        open.delete(controller);
      },
    };
  });
  let closing = false;
  app.addHook('preClose', (next) => {
    closing = true;
    for (const controller of open) controller.abort(new Error('the API closes'));
    next();
  });
  // Or closing waits until the client lets go of a connection that became idle meanwhile.
  app.addHook('onSend', (_request, reply, payload, next) => {
    if (closing) void reply.header('connection', 'close');
    next(null, payload);
  });
  await app.register(fastifySSE, { heartbeatInterval: HEARTBEAT_INTERVAL_MS });
});

/**
 * Settles with `work`, or as soon as `signal` aborts.
 *
 * @fastify/sse waits for a slow client to read on, for ever if the client goes away meanwhile.
 */
export async function orAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  using _ = addAbortListener(signal, () => {
    resolve();
  });
  await Promise.race([work, promise]);
}
