/** The event stream as a client sees it: over a real connection, from a worker that publishes. */
import type { AddressInfo } from 'node:net';
import type { Clone, LogLine } from '@pgcloned/contract';
import { runAsPartsUser } from '@pgcloned/testbed';
import { EventSourceParserStream } from 'eventsource-parser/stream';
import { expect, test } from 'vitest';
import { asViewer } from './harness.ts';
import { FENCE, openProduct, problemIn, specFor } from './redis-harness.ts';

interface Seen {
  readonly event: string | undefined;
  readonly id: string | undefined;
  readonly data: Clone & LogLine;
}

/** Opens the stream; `next` settles with its next event, or undefined at its end. */
async function openStream(url: string, headers: Record<string, string> = {}) {
  const aborter = new AbortController();
  const response = await fetch(url, {
    headers: { ...asViewer, ...headers },
    signal: aborter.signal,
  });
  const reader = response.body
    ?.pipeThrough(new TextDecoderStream())
    .pipeThrough(new EventSourceParserStream())
    .getReader();
  const next = async (): Promise<Seen | undefined> => {
    const { value } = (await reader?.read()) ?? {};
    return value && { event: value.event, id: value.id, data: JSON.parse(value.data) as never };
  };
  const rest = async (): Promise<Seen[]> => {
    const seen: Seen[] = [];
    for (let event = await next(); event !== undefined; event = await next()) seen.push(event);
    return seen;
  };
  return { response, next, rest, leave: () => aborter.abort() };
}

async function openListening() {
  await using stack = new AsyncDisposableStack();
  const product = stack.use(await openProduct());
  const worker = await product.register();
  await product.app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = product.app.server.address() as AddressInfo;
  const clone = (await product.post(specFor('main'))).json<Clone>();
  const running: Clone = { ...clone, state: 'running', startedAt: clone.createdAt };
  const everything = stack.move();
  return {
    ...product,
    worker,
    running,
    url: `http://127.0.0.1:${String(port)}/v1/clones/${clone.id}/events`,
    say: (message: string) => {
      worker.appendLog(clone.id, {
        time: clone.createdAt,
        level: 'info',
        phase: 'copy-files',
        message,
        fields: {},
      });
    },
    end: async () => {
      await worker.confirm({ ...running, state: 'succeeded', endedAt: clone.createdAt }, FENCE);
    },
    [Symbol.asyncDispose]: async () => {
      await everything.disposeAsync();
    },
  };
}

test('a stream begins with the whole record and ends with the ended one', async () => {
  await using product = await openListening();
  const stream = await openStream(product.url);
  const first = await stream.next();

  await product.worker.confirm(product.running, FENCE);
  product.say('copying');
  await product.end();
  const rest = await stream.rest();

  expect(stream.response.headers.get('content-type')).toMatch(/^text\/event-stream/);
  expect(stream.response.headers.get('x-request-id')).toBeTruthy();
  expect(first).toMatchObject({ event: 'clone', data: { state: 'queued' } });
  expect(rest.find(({ event }) => event === 'log')).toMatchObject({ data: { message: 'copying' } });
  expect(rest.at(-1)).toMatchObject({ event: 'end', data: { state: 'succeeded' } });
});

test('whoever resumes with Last-Event-ID gets the lines that were missed, and no other', async () => {
  await using product = await openListening();
  await product.worker.confirm(product.running, FENCE);
  product.say('seen');
  const stream = await openStream(product.url);
  let last: Seen | undefined;
  do last = await stream.next();
  while (last?.event !== 'log');
  stream.leave();
  product.say('missed');
  await product.end();

  const resumed = await openStream(product.url, { 'last-event-id': String(last.id) });
  const events = await resumed.rest();

  expect(events[0]).toMatchObject({ event: 'clone' });
  expect(events.filter(({ event }) => event === 'log').map(({ data }) => data.message)).toEqual([
    'missed',
  ]);
  expect(events.at(-1)).toMatchObject({ event: 'end' });
});

test('the log can be read as a whole', async () => {
  await using product = await openListening();
  await product.worker.confirm(product.running, FENCE);
  product.say('one');
  product.say('two');
  await product.end();

  const response = await product.app.inject({
    url: product.url.replace(/^.*(\/v1\/.*)\/events$/, '$1/logs'),
    headers: asViewer,
  });

  expect(response.json()).toMatchObject({ lines: [{ message: 'one' }, { message: 'two' }] });
});

test('closing the API ends open streams and waiting readers', async () => {
  await using product = await openListening();
  const stream = await openStream(product.url);
  await stream.next();
  const waiting = fetch(product.url.replace(/\/events$/, ''), {
    headers: { ...asViewer, prefer: 'wait=50' },
  });
  const other = await openStream(product.url);
  await other.next();

  await product.app.close();

  expect(await stream.rest()).toEqual([]);
  expect((await waiting).status).toBe(200);
});

test('a client that refuses event streams gets 406', async () => {
  await using product = await openListening();
  const response = await product.app.inject({
    url: new URL(product.url).pathname,
    headers: { ...asViewer, accept: 'application/json' },
  });
  expect(problemIn(response)).toMatchObject({ status: 406, code: 'NOT_ACCEPTABLE' });
});

test('a stream that was left is no longer watched', async () => {
  await using product = await openListening();
  const watchedChannels = async () =>
    (await runAsPartsUser(['redis-cli', '-s', product.redis.socket, 'PUBSUB', 'CHANNELS'])).stdout
      .toString()
      .trim();
  const stream = await openStream(product.url);
  await stream.next();
  expect(await watchedChannels()).not.toBe('');

  stream.leave();

  await expect.poll(watchedChannels).toBe('');
  await expect
    .poll(() => product.lines.map(({ msg }) => msg))
    .toContain('request left by its client');
});
