/**
 * Tells those who wait that a clone has changed, over one connection for all of them.
 *
 * A message carries nothing but the fact, or that the clone was forgotten: whoever hears it reads the record. Messages get
 * lost while Redis is away, so everybody is woken when it is back.
 */
import { addAbortListener } from 'node:events';
import { changedChannel, FORGOTTEN_MESSAGE } from './keys.ts';
import { ask, type ConnectOptions, connectForMessages } from './redis-connection.ts';

interface ChangeWatch extends Disposable {
  /** Settles at the next change, after `timeoutMs` or when `signal` aborts. A change between two calls is not lost. */
  readonly next: (o: { readonly timeoutMs: number; readonly signal: AbortSignal }) => Promise<void>;
  /** Tells a record that somebody removed from one that Redis lost. */
  readonly isForgotten: () => boolean;
}

export interface ChangeFeed extends Disposable {
  /** @throws {CloneError} `QUEUE_UNAVAILABLE`. */
  readonly watch: (id: string) => Promise<ChangeWatch>;
}

interface Topic {
  readonly wakes: Set<() => void>;
  readonly subscribed: Promise<unknown>;
  isForgotten: boolean;
}

export function openChangeFeed(options: ConnectOptions): ChangeFeed {
  const redis = connectForMessages(options);
  const topics = new Map<string, Topic>();
  redis.on('message', (channel: string, message: string) => {
    const topic = topics.get(channel);
    if (topic === undefined) return;
    if (message === FORGOTTEN_MESSAGE) topic.isForgotten = true;
    for (const wake of topic.wakes) wake();
  });
  redis.on('ready', () => {
    for (const { wakes } of topics.values()) for (const wake of wakes) wake();
  });

  return {
    watch: async (id) => {
      const channel = changedChannel(id);
      const topic: Topic = topics.get(channel) ?? {
        wakes: new Set(),
        subscribed: ask(redis.subscribe(channel)),
        isForgotten: false,
      };
      topics.set(channel, topic);
      let changed = false;
      let notify = () => {};
      const wake = () => {
        changed = true;
        notify();
      };
      topic.wakes.add(wake);
      const leave = () => {
        topic.wakes.delete(wake);
        if (topic.wakes.size > 0 || topics.get(channel) !== topic) return;
        topics.delete(channel);
        redis.unsubscribe(channel).catch(options.onError);
      };
      try {
        await topic.subscribed;
      } catch (error) {
        leave();
        throw error;
      }
      return {
        next: async ({ timeoutMs, signal }) => {
          if (!changed && !signal.aborted) {
            const { promise, resolve } = Promise.withResolvers<void>();
            notify = resolve;
            const timer = setTimeout(resolve, timeoutMs);
            using _ = addAbortListener(signal, () => {
              resolve();
            });
            await promise;
            clearTimeout(timer);
          }
          changed = false;
        },
        isForgotten: () => topic.isForgotten,
        [Symbol.dispose]: leave,
      };
    },
    [Symbol.dispose]: () => {
      redis.disconnect();
    },
  };
}
