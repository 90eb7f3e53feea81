/**
 * The event stream of one clone, across lost connections.
 *
 * The API sends a comment every 15 s, so silence means that the connection is dead, whatever TCP believes. Each new
 * connection begins with the whole record, and `Last-Event-ID` brings the log lines that were missed meanwhile.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { ApiError, demandType, refusal, unreachable } from './api-error.ts';
import type { CloneEvent } from './types.ts';

/** Three heartbeats of the API. */
const SILENCE_MS_MAX = 45_000;

/** An API that restarts is back within seconds; one that moves to another machine, within minutes. */
const AWAY_MS_MAX = 120_000;

const RECONNECT_MS_MAX = 3_000;

interface WatchOptions {
  readonly baseUrl: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly id: string;
  readonly signal: AbortSignal;
}

export async function* watchClone(options: WatchOptions): AsyncGenerator<CloneEvent, void> {
  const { signal } = options;
  let lastEventId: string | null = null;
  let lastHeardMs = Date.now();
  let attempt = 0;
  for (;;) {
    try {
      for await (const event of readStream(options, lastEventId)) {
        lastEventId = event.id;
        lastHeardMs = Date.now();
        attempt = 0;
        yield event;
        if (event.event === 'end') return;
      }
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof ApiError) || !error.problem.retryable) throw error;
      if (Date.now() - lastHeardMs > AWAY_MS_MAX) throw error;
    }
    attempt += 1;
    await delay(Math.min(200 * attempt, RECONNECT_MS_MAX), undefined, { signal }).catch(() => {
      signal.throwIfAborted();
    });
  }
}

/** The events of one connection. Ends without an `end` event if the API closes it. */
async function* readStream(
  { baseUrl, headers, id, signal }: WatchOptions,
  lastEventId: string | null,
): AsyncGenerator<CloneEvent, void> {
  const silence = new AbortController();
  const timer = setTimeout(() => {
    silence.abort(new Error(`nothing heard for ${String(SILENCE_MS_MAX / 1000)} s`));
  }, SILENCE_MS_MAX);
  try {
    const response = await fetch(`${baseUrl}/v1/clones/${encodeURIComponent(id)}/events`, {
      headers: {
        ...headers,
        accept: 'text/event-stream',
        ...(lastEventId !== null && { 'last-event-id': lastEventId }),
      },
      signal: AbortSignal.any([signal, silence.signal]),
    });
    if (!response.ok || response.body === null) {
      throw refusal(response.status, await response.json().catch(() => null));
    }
    demandType(response, 'text/event-stream');
    const messages: EventSourceMessage[] = [];
    const parser = createParser({ onEvent: (message) => messages.push(message) });
    for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
      timer.refresh();
      parser.feed(text);
      for (const { event, id: eventId = '', data } of messages.splice(0)) {
        yield { event, id: eventId, data: JSON.parse(data) } as CloneEvent;
      }
    }
  } catch (error) {
    throw error instanceof ApiError ? error : unreachable(baseUrl, error);
  } finally {
    clearTimeout(timer);
  }
}
