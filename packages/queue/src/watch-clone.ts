/**
 * The event stream of one clone.
 *
 * The first event is the whole record, so that whoever connects knows where the clone stands; then come the log lines
 * and changes after the position that the caller has seen. The id of an event is a position in the clone's stream in
 * Redis: the first event carries the position it was called with, so that resuming from it misses no log line.
 */
import { type Clone, CloneError, hasEnded, LogLine, type StreamEvent } from '@pgcloned/contract';
import type { Redis } from 'ioredis';
import type { ChangeFeed } from './change-feed.ts';
import { HEARTBEAT_MS } from './host-registry.ts';
import { eventsKey } from './keys.ts';
import { parsedJson } from './parsed-json.ts';
import { ask } from './redis-connection.ts';
import { notFound, versionOf } from './stored-clone.ts';

const POSITION = /^\d{1,20}-\d{1,20}$/;
const BEFORE_ALL = '0-0';
const EVENTS_PER_READ = 200;

/** A record that Redis lost comes back with its worker's next heartbeat; one may get lost. */
const MISSING_MS_MAX = 2 * HEARTBEAT_MS + 1_000;

export async function* watchClone(o: {
  readonly redis: Redis;
  readonly feed: ChangeFeed;
  readonly id: string;
  readonly lastEventId: string | null;
  readonly signal: AbortSignal;
  readonly read: () => Promise<Clone | undefined>;
  /** How often to look although nothing was said. */
  readonly checkMs: number;
}): AsyncGenerator<StreamEvent, void, void> {
  const { redis, id, signal, read } = o;
  let position =
    o.lastEventId !== null && POSITION.test(o.lastEventId) ? o.lastEventId : BEFORE_ALL;
  const first = await read();
  if (first === undefined) throw notFound(id);
  using changes = await o.feed.watch(id);
  let shown = versionOf(first);
  yield { event: 'clone', id: position, data: first };

  /** @returns Whether the clone has ended. */
  async function* newsOf(clone: Clone): AsyncGenerator<StreamEvent, boolean, void> {
    for (;;) {
      const entries = await ask(
        redis.xrange(eventsKey(id), `(${position}`, '+', 'COUNT', EVENTS_PER_READ),
      );
      for (const [entryId, fields] of entries) {
        position = entryId;
        const line = logLineOf(fields);
        if (line !== undefined) yield { event: 'log', id: position, data: line };
      }
      if (entries.length < EVENTS_PER_READ) break;
    }
    const ended = hasEnded(clone.state);
    if (ended) yield { event: 'end', id: position, data: clone };
    else if (versionOf(clone) !== shown) {
      shown = versionOf(clone);
      yield { event: 'clone', id: position, data: clone };
    }
    return ended;
  }

  let missingSinceMs: number | null = null;
  while (!signal.aborted) {
    try {
      // The record before the lines: when it has ended, all lines are there.
      const clone = await read();
      if (clone === undefined) {
        missingSinceMs ??= performance.now();
        const isMissingForLong = performance.now() - missingSinceMs > MISSING_MS_MAX;
        if (changes.isForgotten() || isMissingForLong) return;
      } else {
        missingSinceMs = null;
        if (yield* newsOf(clone)) return;
      }
    } catch (error) {
      // The caller has begun to listen; an outage is a silence and not the end.
      if (!(error instanceof CloneError && error.code === 'QUEUE_UNAVAILABLE')) throw error;
    }
    await changes.next({ timeoutMs: o.checkMs, signal });
  }
}

/** The log line of a stream entry; undefined for a marker. */
export function logLineOf(fields: readonly string[]): LogLine | undefined {
  const [, event, , line] = fields;
  if (event !== 'log' || line === undefined) return undefined;
  return LogLine.safeParse(parsedJson(line)).data;
}
