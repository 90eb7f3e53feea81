/**
 * The event stream across broken connections. The server here is a plain one that breaks off where a test wants it to;
 * the API's own stream is tested with the API.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { ApiError, answerOf, connectApi } from '../src/index.ts';

const { signal } = new AbortController();

/** Answers the nth request with the nth handler, and every later one with the last. */
async function serve(
  ...handlers: ((request: IncomingMessage, response: ServerResponse) => void)[]
) {
  const requests: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    requests.push(request);
    handlers[Math.min(requests.length, handlers.length) - 1]?.(request, response);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    requests,
    api: connectApi({ url: `http://127.0.0.1:${String(port)}/`, token: 'a-token' }),
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

const message = (event: string, id: string, data: object) =>
  `event: ${event}\nid: ${id}\ndata: ${JSON.stringify(data)}\n\n`;

function streaming(...messages: string[]) {
  return (_request: IncomingMessage, response: ServerResponse) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    for (const text of messages) response.write(text);
  };
}

const problem = (code: string, status: number) => ({
  type: `urn:problem-type:pgcloned:${code}`,
  title: 'a title',
  status,
  code,
  retryable: status === 503,
});

const refusing =
  (status: number, body: string) => (_request: IncomingMessage, response: ServerResponse) => {
    response.writeHead(status, { 'content-type': 'application/problem+json' }).end(body);
  };

test('a stream that breaks off is taken up again after its last event', async () => {
  await using server = await serve(
    (request, response) => {
      streaming(message('clone', '0-0', { n: 1 }), message('log', '5-0', { n: 2 }))(
        request,
        response,
      );
      setImmediate(() => response.destroy());
    },
    refusing(503, JSON.stringify(problem('QUEUE_UNAVAILABLE', 503))),
    streaming(
      message('clone', '5-0', { n: 3 }),
      ': heartbeat\n\n',
      message('end', '6-0', { n: 4 }),
    ),
  );

  const seen = [];
  for await (const event of server.api.watch('an-id', { signal })) seen.push(event);

  expect(seen.map(({ event, data }) => [event, data])).toEqual([
    ['clone', { n: 1 }],
    ['log', { n: 2 }],
    ['clone', { n: 3 }],
    ['end', { n: 4 }],
  ]);
  expect(server.requests.map(({ headers }) => headers['last-event-id'])).toEqual([
    undefined,
    '5-0',
    '5-0',
  ]);
  expect(server.requests[0]).toMatchObject({
    url: '/v1/clones/an-id/events',
    headers: { authorization: 'Bearer a-token', accept: 'text/event-stream' },
  });
});

test('a refusal that would come again ends the stream at once', async () => {
  await using server = await serve(refusing(404, JSON.stringify(problem('NOT_FOUND', 404))));

  const watching = server.api.watch('an-id', { signal }).next();

  await expect(watching).rejects.toMatchObject({ problem: { code: 'NOT_FOUND' } });
  expect(server.requests).toHaveLength(1);
});

test('an abort ends the stream with its reason, also between two attempts', async () => {
  await using server = await serve(refusing(502, '<html>'));
  const aborter = new AbortController();

  const watching = server.api.watch('an-id', { signal: aborter.signal }).next();
  await expect.poll(() => server.requests.length).toBeGreaterThan(1);
  aborter.abort(new Error('enough'));

  await expect(watching).rejects.toThrow('enough');
});

test('whoever stops reading closes the connection', async () => {
  await using server = await serve(streaming(message('clone', '0-0', {})));

  for await (const _event of server.api.watch('an-id', { signal })) break;

  await expect.poll(() => server.requests[0]?.destroyed).toBe(true);
});

test('a call answers its body, or throws the problem of the API', async () => {
  await using server = await serve(
    (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json' }).end('{"hosts":[]}');
    },
    refusing(403, JSON.stringify(problem('FORBIDDEN', 403))),
    refusing(502, '<html>bad gateway</html>'),
    (_request, response) => {
      response.writeHead(200, { 'content-type': 'text/html' }).end('<html>please log in</html>');
    },
  );
  const call = async () => await answerOf(server.api.http.GET('/v1/hosts'));

  expect(await call()).toEqual({ hosts: [] });
  await expect(call()).rejects.toMatchObject({ problem: { code: 'FORBIDDEN', status: 403 } });
  await expect(call()).rejects.toMatchObject({
    problem: { code: 'API_UNREACHABLE', detail: expect.stringContaining('502') as string },
  });
  await expect(call()).rejects.toMatchObject({
    problem: { code: 'API_UNREACHABLE', detail: expect.stringContaining('200') as string },
  });
});

test('a call without an answer says where nobody answered, and why', async () => {
  const server = await serve();
  await server[Symbol.asyncDispose]();

  const call = answerOf(server.api.http.GET('/v1/hosts'));

  await expect(call).rejects.toBeInstanceOf(ApiError);
  await expect(call).rejects.toMatchObject({
    problem: { code: 'API_UNREACHABLE', hint: expect.anything() as string },
    message: expect.stringMatching(/127\.0\.0\.1.*ECONNREFUSED/) as string,
  });
});
