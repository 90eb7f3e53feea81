/** Creating, reading, changing, cancelling and forgetting clones, over a real Redis. */
import type { Clone } from '@pgcloned/contract';
import { describe, expect, test, vi } from 'vitest';
import { asAdmin, asOperator, asViewer, NO_STORE, openApi } from './harness.ts';
import { FENCE, openProduct, problemIn, specFor } from './redis-harness.ts';

test('a clone that is accepted is answered with where it can be read', async () => {
  await using product = await openProduct();
  await product.register();

  const accepted = await product.post(specFor('main'));
  const clone = accepted.json<Clone>();
  const read = await product.app.inject({
    url: String(accepted.headers.location),
    headers: asViewer,
  });

  expect(accepted.statusCode).toBe(202);
  expect(accepted.headers.location).toBe(`/v1/clones/${clone.id}`);
  expect(Number(accepted.headers['retry-after'])).toBeGreaterThan(0);
  expect(accepted.headers['x-request-id']).toBeTruthy();
  expect(clone).toMatchObject({
    state: 'queued',
    host: 'replica-1',
    spec: { method: 'rsync', transfer: { workers: null }, wal: { retention: 'pin' } },
  });
  expect(read.json()).toEqual(clone);
});

test('validateOnly answers the clone as it would be made, and makes nothing', async () => {
  await using product = await openProduct();
  await product.register();

  const valid = await product.post(specFor('main'), '/v1/clones?validateOnly=true');
  const list = await product.app.inject({ url: '/v1/clones', headers: asViewer });

  expect(valid.statusCode).toBe(200);
  expect(valid.json()).toMatchObject({ state: 'queued', spec: { target: { ifExists: 'fail' } } });
  expect(list.json()).toEqual({ clones: [], nextPageToken: null });
});

test('a target on which another clone works is refused with its id', async () => {
  await using product = await openProduct();
  await product.register();
  const { id } = (await product.post(specFor('main'))).json<Clone>();

  const same = await product.post(specFor('main'));
  const below = await product.post(specFor('main/base'));
  const checked = await product.post(specFor('main'), '/v1/clones?validateOnly=true');

  for (const refused of [same, below, checked]) {
    expect(problemIn(refused)).toMatchObject({
      status: 409,
      code: 'TARGET_BUSY',
      holder: id,
      retryable: true,
      hint: expect.stringContaining(id) as string,
    });
  }
});

test('a request that is repeated with its idempotency key makes one clone', async () => {
  await using product = await openProduct();
  await product.register();
  const key = { 'idempotency-key': 'order-4711' };
  const body = specFor('main', { labels: { a: '1', b: '2' } });

  const first = await product.post(body, '/v1/clones', key);
  const again = await product.post(
    { ...body, labels: { b: '2', a: '1' }, method: 'rsync' },
    '/v1/clones',
    key,
  );
  const other = await product.post(specFor('other'), '/v1/clones', key);
  const ofAnotherToken = await product.post(specFor('other'), '/v1/clones', { ...key, ...asAdmin });

  expect(again.statusCode).toBe(202);
  expect(again.json<Clone>().id).toBe(first.json<Clone>().id);
  expect(problemIn(other)).toMatchObject({ status: 422, code: 'IDEMPOTENCY_KEY_REUSED' });
  expect(ofAnotherToken.statusCode).toBe(202);
  expect(product.lines.filter(({ msg }) => msg === 'clone created')).toHaveLength(2);
});

test('a webhook nested as deep as a body allows is not supported, with a key too', async () => {
  await using product = await openProduct();
  await product.register();
  const deep = `{"a":${'['.repeat(60_000)}${']'.repeat(60_000)}}`;
  const payload = JSON.stringify(specFor('main', { webhook: 'here' })).replace('"here"', deep);

  const response = await product.app.inject({
    method: 'POST',
    url: '/v1/clones',
    headers: { ...asOperator, 'content-type': 'application/json', 'idempotency-key': 'deep' },
    payload,
  });

  expect(problemIn(response)).toMatchObject({ status: 422, code: 'NOT_SUPPORTED' });
});

test('a request that was accepted is not refused when it is repeated with its key', async () => {
  await using product = await openProduct();
  await product.register();
  const key = { 'idempotency-key': 'order-4711' };
  const deadline = new Date(Date.now() + 1_000).toISOString();
  const body = specFor('main', { deadline });
  const first = await product.post(body, '/v1/clones', key);
  await vi.waitUntil(() => Date.now() > Date.parse(deadline), { timeout: 5_000 });

  const again = await product.post(body, '/v1/clones', key);
  const withoutKey = await product.post(body);

  expect(again.statusCode).toBe(202);
  expect(again.json<Clone>().id).toBe(first.json<Clone>().id);
  expect(problemIn(withoutKey)).toMatchObject({ status: 422, code: 'REQUEST_INVALID' });
});

test.each([
  [
    'an unknown host',
    specFor('main', { target: { host: 'nowhere', dataDirectory: '/x/y' } }),
    'HOST_UNKNOWN',
  ],
  ['an unknown source', specFor('main', { source: { name: 'nothing' } }), 'SOURCE_UNKNOWN'],
  [
    'a source that spells out a host',
    specFor('main', { source: { host: 'db1', user: 'x' } }),
    'NOT_SUPPORTED',
  ],
  [
    'a rate without a transfer',
    specFor('main', { method: 'reflink', transfer: { maxRate: 1_000_000 } }),
    'NOT_SUPPORTED',
  ],
  ['a writable standby', specFor('main', { replica: { waitFor: 'writable' } }), 'NOT_SUPPORTED'],
  ['a time to live of a century', specFor('main', { ttl: 3_155_760_000 }), 'REQUEST_INVALID'],
  ['a webhook', specFor('main', { webhook: { url: 'https://x.example/' } }), 'NOT_SUPPORTED'],
  [
    'a setting that runs commands',
    specFor('main', { replica: { settings: { restore_command: 'id' } } }),
    'SETTING_FORBIDDEN',
  ],
  [
    'a deadline in the past',
    specFor('main', { deadline: '2020-01-01T00:00:00Z' }),
    'REQUEST_INVALID',
  ],
])('%s is refused with a hint', async (_what, body, code) => {
  await using product = await openProduct();
  await product.register();
  expect(problemIn(await product.post(body))).toMatchObject({
    status: 422,
    code,
    hint: expect.stringMatching(/\.$/) as string,
  });
});

test('a setting is accepted where the worker of the host allows it by name', async () => {
  await using product = await openProduct();
  await product.register();
  const settings = { archive_command: '/bin/true', work_mem: '64MB' };
  expect((await product.post(specFor('main', { replica: { settings } }))).statusCode).toBe(202);
});

test.each([
  [
    { target: { host: 'replica-1', dataDirectory: 'relative' } },
    '/target/dataDirectory',
    /absolute/,
  ],
  [{ target: { host: 'replica-1', dataDirectory: '/a/../b' } }, '/target/dataDirectory', /\.\./],
  [{ transfer: { workers: 65 } }, '/transfer/workers', /64/],
  [{ transfer: { compression: 'gzip' } }, '/transfer/compression', /zstd/],
  [{ transfer: { speed: 1 } }, '/transfer/speed', /not a known field.*maxRate/],
  [{ unknown: 1 }, '/unknown', /not a known field.*target/],
  [{ replica: { settings: { 'a b': 1 } } }, '/replica/settings/a b', /name of a setting/],
  [{ replica: { settings: { work_mem: [] } } }, '/replica/settings/work_mem', /string.*number/],
  [{ labels: { 'x/~': 'y\n' } }, '/labels/x~1~0', /./],
  [{ source: {} }, '/source', /either a name or a clone/],
])('%j is refused at %s', async (more, pointer, message) => {
  await using product = await openProduct();

  const problem = problemIn(await product.post(specFor('main', more)));

  expect(problem).toMatchObject({
    status: 422,
    code: 'REQUEST_INVALID',
    errors: [{ pointer, message: expect.stringMatching(message) as string }],
  });
});

test.each([
  ['JSON that ends too early', '{"source":', 'application/json', 400, 'REQUEST_MALFORMED'],
  ['a poisoned prototype', '{"__proto__":{"x":1}}', 'application/json', 400, 'REQUEST_MALFORMED'],
  ['an empty body', '', 'application/json', 400, 'REQUEST_MALFORMED'],
  ['no body at all', undefined, undefined, 400, 'REQUEST_MALFORMED'],
  ['a list', '[]', 'application/json', 422, 'REQUEST_INVALID'],
  ['a form', 'source=orders', 'application/x-www-form-urlencoded', 415, 'MEDIA_TYPE_UNSUPPORTED'],
  ['plain text', '{"source":{}}', 'text/plain', 415, 'MEDIA_TYPE_UNSUPPORTED'],
  ['a huge body', `"${'x'.repeat(300_000)}"`, 'application/json', 413, 'REQUEST_TOO_LARGE'],
])('%s is a problem', async (_what, payload, type, status, code) => {
  await using product = await openProduct();
  const response = await product.app.inject({
    method: 'POST',
    url: '/v1/clones',
    headers: { ...asOperator, ...(type !== undefined && { 'content-type': type }) },
    ...(payload !== undefined && { payload }),
  });
  expect(problemIn(response)).toMatchObject({ status, code, hint: expect.any(String) as string });
});

test('what is missing is called that', async () => {
  await using product = await openProduct();

  const refused = await product.post({ source: { name: 'orders' }, target: { host: 'replica-1' } });

  expect(problemIn(refused)).toMatchObject({
    status: 422,
    errors: [{ pointer: '/target/dataDirectory', message: 'is missing' }],
  });
});

test.each([
  ['GET', '/v1/clones?pageSize=0', 400, 'REQUEST_MALFORMED'],
  ['GET', '/v1/clones?pageToken=x', 400, 'REQUEST_MALFORMED'],
  ['GET', '/v1/clones?state=done', 400, 'REQUEST_MALFORMED'],
  ['GET', '/v1/clones?stat=queued', 400, 'REQUEST_MALFORMED'],
  ['GET', '/v1/clones/%zz', 400, 'REQUEST_MALFORMED'],
  ['GET', '/v1/clones/none', 404, 'NOT_FOUND'],
  ['GET', `/v1/clones/${'0'.repeat(32)}`, 404, 'NOT_FOUND'],
  ['GET', `/v1/clones/${'0'.repeat(32)}/logs`, 404, 'NOT_FOUND'],
  ['GET', `/v1/clones/${'0'.repeat(32)}/events`, 404, 'NOT_FOUND'],
  ['POST', `/v1/clones/${'0'.repeat(32)}/cancel`, 404, 'NOT_FOUND'],
  ['DELETE', `/v1/clones/${'0'.repeat(32)}`, 404, 'NOT_FOUND'],
  ['GET', '/v1/hosts/nowhere', 404, 'NOT_FOUND'],
  ['GET', '/v1/nothing', 404, 'NOT_FOUND'],
  ['PUT', '/v1/clones', 405, 'METHOD_NOT_ALLOWED'],
  ['OPTIONS', '/v1/hosts/x', 405, 'METHOD_NOT_ALLOWED'],
  ['POST', '/v1/preflights', 400, 'REQUEST_MALFORMED'],
] as const)('%s %s is %i', async (method, url, status, code) => {
  await using product = await openProduct();
  const response = await product.app.inject({ method, url, headers: asAdmin });
  expect(problemIn(response)).toMatchObject({ status, code, hint: expect.any(String) as string });
  expect(response.headers['x-request-id']).toBeTruthy();
  if (status === 405) expect(response.headers.allow).toContain('GET');
});

test('a client that names a type without sending a body is answered as one that names none', async () => {
  await using product = await openProduct();
  await product.register();
  const { id } = (await product.post(specFor('main'))).json<Clone>();
  const headers = { ...asOperator, 'content-type': 'application/json' };

  const cancelled = await product.app.inject({
    method: 'POST',
    url: `/v1/clones/${id}/cancel`,
    headers,
  });
  const forgotten = await product.app.inject({
    method: 'DELETE',
    url: `/v1/clones/${id}`,
    headers,
  });

  expect(cancelled.statusCode).toBe(202);
  expect(forgotten.statusCode).toBe(204);
});

test('what would not be looked at is refused, a parameter as well as a body, and nothing is done', async () => {
  await using product = await openProduct();
  await product.register();
  const clone = (await product.post(specFor('main'))).json<Clone>();
  const url = `/v1/clones/${clone.id}`;

  const parameter = await product.post({}, `${url}/cancel?force=true`);
  const body = await product.post({ reason: 'none' }, `${url}/cancel`);
  const removal = await product.app.inject({
    method: 'DELETE',
    url,
    headers: asOperator,
    payload: { data: true },
  });

  expect(problemIn(parameter)).toMatchObject({
    status: 400,
    code: 'REQUEST_MALFORMED',
    errors: [{ pointer: '/force', message: 'is not a known field; there are none' }],
  });
  expect(problemIn(body)).toMatchObject({ status: 422, code: 'REQUEST_INVALID' });
  expect(problemIn(removal)).toMatchObject({ status: 422, code: 'REQUEST_INVALID' });
  expect((await product.app.inject({ url, headers: asViewer })).json()).toMatchObject({
    state: 'queued',
  });
});

test('the list is filtered, and its pages hold every clone once, newest first', async () => {
  await using product = await openProduct();
  await product.register();
  const ids: string[] = [];
  for (const team of ['a', 'b', 'a', 'a']) {
    const body = specFor(`db${String(ids.length)}`, { labels: { team } });
    ids.unshift((await product.post(body)).json<Clone>().id);
  }
  const list = async (query: string) => {
    const response = await product.app.inject({ url: `/v1/clones?${query}`, headers: asViewer });
    return response.json<{ clones: Clone[]; nextPageToken: string | null }>();
  };

  const first = await list('pageSize=3');
  const second = await list(`pageSize=3&pageToken=${String(first.nextPageToken)}`);
  const teamA = await list('label=team%3Da');

  expect([...first.clones, ...second.clones].map(({ id }) => id)).toEqual(ids);
  expect(second.nextPageToken).toBeNull();
  expect(teamA.clones.map(({ id }) => id)).toEqual([ids[0], ids[1], ids[3]]);
  expect((await list('state=running')).clones).toEqual([]);
  expect((await list('host=replica-1')).clones).toHaveLength(4);
});

test('a reader who knows the clone as it is gets 304', async () => {
  await using product = await openProduct();
  await product.register();
  const url = String((await product.post(specFor('main'))).headers.location);

  const first = await product.app.inject({ url, headers: asViewer });
  const etag = String(first.headers.etag);
  const known = await product.app.inject({
    url,
    headers: { ...asViewer, 'if-none-match': `"other", W/${etag}` },
  });
  const stale = await product.app.inject({ url, headers: { ...asViewer, 'if-none-match': '"x"' } });

  expect(known.statusCode).toBe(304);
  expect(known.headers.etag).toBe(etag);
  expect(known.payload).toBe('');
  expect(stale.statusCode).toBe(200);
});

test('Prefer: wait answers when the clone changes, and at once when it has ended', async () => {
  await using product = await openProduct();
  const worker = await product.register();
  const clone = (await product.post(specFor('main'))).json<Clone>();
  const url = `/v1/clones/${clone.id}`;
  const read = async (headers: Record<string, string>) =>
    await product.app.inject({ url, headers: { ...asViewer, ...headers } });

  const { etag } = (await read({})).headers;
  const waiting = read({ prefer: 'respond-async, wait=30', 'if-none-match': String(etag) });
  await worker.confirm({ ...clone, state: 'running', startedAt: clone.createdAt }, FENCE);
  const changed = await waiting;
  const behind = await read({ prefer: 'wait=30', 'if-none-match': '"an old one"' });
  const ended = { ...clone, state: 'failed' as const, endedAt: clone.createdAt };
  await worker.confirm(ended, FENCE);
  const atOnce = await read({ prefer: 'wait=30' });

  expect(changed.json()).toMatchObject({ state: 'running' });
  expect(changed.headers['preference-applied']).toBe('wait=30');
  expect(behind.json()).toMatchObject({ state: 'running' });
  expect(atOnce.json()).toMatchObject({ state: 'failed' });
});

test('Prefer: wait without a change answers what was known', async () => {
  await using product = await openProduct();
  await product.register();
  const url = String((await product.post(specFor('main'))).headers.location);
  const { etag } = (await product.app.inject({ url, headers: asViewer })).headers;

  const waited = await product.app.inject({
    url,
    headers: { ...asViewer, prefer: 'wait=1', 'if-none-match': String(etag) },
  });

  expect(waited.statusCode).toBe(304);
});

test('a queued clone is cancelled at once, and asking again changes nothing', async () => {
  await using product = await openProduct();
  await product.register();
  const { id } = (await product.post(specFor('main'))).json<Clone>();

  const cancelled = await product.post({}, `/v1/clones/${id}/cancel`);
  const again = await product.post({}, `/v1/clones/${id}/cancel`);

  expect(cancelled.statusCode).toBe(202);
  expect(cancelled.json()).toMatchObject({ id, state: 'cancelled' });
  expect(again.statusCode).toBe(202);
});

test('a clone that has succeeded cannot be cancelled, but forgotten', async () => {
  await using product = await openProduct();
  const worker = await product.register();
  const clone = (await product.post(specFor('main'))).json<Clone>();
  const url = `/v1/clones/${clone.id}`;
  const remove = async (query: string, headers = asOperator) =>
    await product.app.inject({ method: 'DELETE', url: url + query, headers });

  const tooEarly = await remove('');
  await worker.confirm({ ...clone, state: 'succeeded', endedAt: clone.createdAt }, FENCE);
  const cancelled = await product.post({}, `${url}/cancel`);
  const both = await remove('?data=true&force=true', asAdmin);
  const forgotten = await remove('');

  expect(problemIn(tooEarly)).toMatchObject({ code: 'CLONE_NOT_ENDED', retryable: true });
  expect(problemIn(cancelled)).toMatchObject({ status: 409, code: 'CLONE_ENDED' });
  expect(problemIn(both)).toMatchObject({ status: 422, code: 'REQUEST_INVALID' });
  expect(forgotten.statusCode).toBe(204);
  expect((await product.app.inject({ url, headers: asViewer })).statusCode).toBe(404);
});

test('what is asked of an instance is shown at once, until its worker has done it', async () => {
  await using product = await openProduct();
  const worker = await product.register();
  const { clone, url } = await endedClone(product, worker, { ttl: 60 });

  const stopped = (await product.post({}, `${url}/stop`)).json<Clone>();
  const extended = (await product.post({ ttl: null }, `${url}/extend`)).json<Clone>();
  const removing = await product.app.inject({
    method: 'DELETE',
    url: `${url}?data=true`,
    headers: asOperator,
  });
  const started = await product.post({}, `${url}/start`);
  const forgotten = await product.app.inject({ method: 'DELETE', url, headers: asOperator });

  expect(stopped).toMatchObject({
    waitingFor: 'host replica-1 to stop the server of the clone',
    instance: { state: 'running', expiresAt: null },
  });
  expect(extended.instance).toMatchObject({ expiresAt: null });
  expect(removing.statusCode).toBe(202);
  expect(removing.json()).toMatchObject({ instance: { state: 'removing' } });
  expect(problemIn(started)).toMatchObject({ status: 409, code: 'INSTANCE_MISSING' });
  expect(problemIn(forgotten)).toMatchObject({ status: 409, code: 'CLONE_EXPIRES' });
  const wish = (await worker.read(clone.id))?.wishedInstance ?? null;
  expect(wish).toMatchObject({ server: 'stopped', ttl: null, remove: true });
  const removed: Clone = { ...clone, instance: { ...clone.instance, state: 'removed' } };
  expect(await worker.updateEnded(removed, FENCE, { done: wish })).toBe('stored');
  expect((await product.app.inject({ url, headers: asViewer })).json()).toMatchObject({
    waitingFor: null,
    instance: { state: 'removed' },
  });
});

test('a reset that is repeated with its idempotency key makes one clone, also once that has taken the place', async () => {
  await using product = await openProduct();
  const worker = await product.register();
  const { clone, url } = await endedClone(product, worker, {});
  const reset = async (key: string) =>
    await product.app.inject({
      method: 'POST',
      url: `${url}/reset`,
      headers: { ...asOperator, 'idempotency-key': key },
    });

  const first = await reset('one');
  const repeated = await reset('one');
  const other = await reset('other');
  const gone: Clone = { ...clone, instance: { ...clone.instance, state: 'absent', port: null } };
  await worker.updateEnded(gone, FENCE, { done: null });
  const afterwards = await reset('one');

  expect(first.json()).toMatchObject({ resetOf: clone.id });
  for (const { statusCode, headers } of [repeated, afterwards])
    expect([statusCode, headers.location]).toEqual([202, first.headers.location]);
  expect(first.headers['retry-after']).toBe('1');
  expect(problemIn(other)).toMatchObject({ status: 409, code: 'TARGET_BUSY' });
});

test('a wish for a clone whose host is away is accepted, and says what it waits for', async () => {
  await using product = await openProduct();
  const worker = await product.register();
  const { url } = await endedClone(product, worker, {});
  await worker[Symbol.asyncDispose]();

  const stopped = await product.post({}, `${url}/stop`);

  expect(stopped.statusCode).toBe(202);
  expect(stopped.json<Clone>().waitingFor).toMatch(
    /^host replica-1, which is offline since .*, to stop the server of the clone$/,
  );
});

test('neither is a protected clone deleted, nor one forgotten whose files will go', async () => {
  await using product = await openProduct();
  const worker = await product.register();
  const { url } = await endedClone(product, worker, { protected: true });
  const patch = async (payload: object) =>
    await product.app.inject({ method: 'PATCH', url, headers: asOperator, payload });
  const remove = async (query: string) =>
    await product.app.inject({ method: 'DELETE', url: url + query, headers: asOperator });

  const refused = [await remove('?data=true'), await remove('')];
  const unprotected = await patch({ protected: false });
  await product.post({ ttl: 3600 }, `${url}/extend`);
  const expiring = await remove('');
  await product.post({ ttl: null }, `${url}/extend`);

  for (const answer of refused)
    expect(problemIn(answer)).toMatchObject({ status: 409, code: 'CLONE_PROTECTED' });
  expect(unprotected.json()).toMatchObject({ instance: { protected: false } });
  expect(problemIn(expiring)).toMatchObject({ status: 409, code: 'CLONE_EXPIRES' });
  expect((await remove('')).statusCode).toBe(204);
});

/** A server of it runs, as its worker says. */
async function endedClone(
  product: Awaited<ReturnType<typeof openProduct>>,
  worker: Awaited<ReturnType<typeof product.register>>,
  more: Record<string, unknown>,
) {
  const queued = (await product.post(specFor('main', more))).json<Clone>();
  const clone: Clone = {
    ...queued,
    state: 'succeeded',
    endedAt: queued.createdAt,
    instance: { ...queued.instance, state: 'running', port: 5433 },
  };
  await worker.confirm(clone, FENCE);
  return { clone, url: `/v1/clones/${clone.id}` };
}

test('only an admin may forget a clone that has not ended', async () => {
  await using product = await openProduct();
  await product.register();
  const url = String((await product.post(specFor('main'))).headers.location);
  const request = { method: 'DELETE', url: `${url}?force=true` } as const;

  const byOperator = await product.app.inject({ ...request, headers: asOperator });
  const byAdmin = await product.app.inject({ ...request, headers: asAdmin });

  expect(problemIn(byOperator)).toMatchObject({ status: 403, code: 'FORBIDDEN' });
  expect(byAdmin.statusCode).toBe(204);
});

describe('PATCH of a clone', () => {
  async function openClone() {
    await using parts = new AsyncDisposableStack();
    const product = parts.use(await openProduct());
    const worker = await product.register();
    const transfer = { workers: 1, maxRate: 10_000, checksum: true };
    const clone = (await product.post(specFor('main', { transfer }))).json<Clone>();
    const owned = parts.move();
    return {
      ...{ product, worker, clone },
      patch: async (
        body: object | string,
        headers: Readonly<Record<string, string>> = {},
        id = clone.id,
      ) =>
        await product.app.inject({
          ...{ method: 'PATCH', url: `/v1/clones/${id}`, body },
          headers: { ...asOperator, 'content-type': 'application/json', ...headers },
        }),
      [Symbol.asyncDispose]: async () => {
        await owned.disposeAsync();
      },
    };
  }

  test('changes what it names, and nothing else, whether it is queued or runs', async () => {
    await using opened = await openClone();
    const { patch, worker, clone, product } = opened;

    const queued = await patch({ transfer: { maxRate: null } });
    await worker.confirm({ ...clone, state: 'running', startedAt: clone.createdAt }, FENCE);
    const running = await patch(JSON.stringify({ transfer: { workers: 4 } }), {
      'content-type': 'application/merge-patch+json; charset=utf-8',
    });
    const read = await product.app.inject({ url: `/v1/clones/${clone.id}`, headers: asViewer });

    expect([queued.statusCode, running.statusCode]).toEqual([200, 200]);
    expect(queued.json<Clone>().spec).toEqual({
      ...clone.spec,
      transfer: { ...clone.spec.transfer, maxRate: null },
    });
    expect(running.json()).toMatchObject({
      state: 'running',
      spec: { transfer: { workers: 4, maxRate: null, checksum: true } },
    });
    expect(read.json<Clone>().spec).toEqual(running.json<Clone>().spec);
  });

  test('with nothing in it changes nothing', async () => {
    await using opened = await openClone();

    for (const body of [{}, { transfer: {} }]) {
      const response = await opened.patch(body);
      expect(response.statusCode).toBe(200);
      expect(response.json<Clone>().spec).toEqual(opened.clone.spec);
    }
  });

  test('names what can be changed to whoever asks for something else', async () => {
    await using opened = await openClone();
    const refused = async (body: object) => problemIn(await opened.patch(body));

    expect(await refused({ transfer: { compression: 'lz4' } })).toMatchObject({
      ...{ status: 422, code: 'REQUEST_INVALID' },
      errors: [
        { pointer: '/transfer/compression', message: expect.stringContaining('workers, maxRate') },
      ],
    });
    expect(await refused({ state: 'cancelled' })).toMatchObject({
      errors: [{ pointer: '/state', message: expect.stringContaining('transfer') }],
    });
    // It would reset all the rest of it.
    expect(await refused({ transfer: null })).toMatchObject({ status: 422 });
    expect(await refused({ transfer: { workers: 65 } })).toMatchObject({ status: 422 });
    expect(await refused({ transfer: { maxRate: 9_999 } })).toMatchObject({ status: 422 });
  });

  test('is refused for one that has ended, for a viewer, without a body, of another type, for an unknown one', async () => {
    await using opened = await openClone();
    const { patch, clone, worker, product } = opened;
    const body = { transfer: { workers: 2 } };

    const byViewer = await patch(body, asViewer);
    const empty = await patch('');
    const text = await patch('{}', { 'content-type': 'text/plain' });
    const unknown = await patch(body, {}, '0'.repeat(32));
    // Only here is a merge patch a body.
    const created = await product.app.inject({
      ...{ method: 'POST', url: '/v1/clones', body: JSON.stringify(specFor('other')) },
      headers: { ...asOperator, 'content-type': 'application/merge-patch+json' },
    });
    await worker.confirm({ ...clone, state: 'failed', endedAt: clone.createdAt }, FENCE);
    const ended = await patch(body);

    expect(problemIn(byViewer)).toMatchObject({ status: 403 });
    expect(problemIn(empty)).toMatchObject({ status: 400, code: 'REQUEST_MALFORMED' });
    expect(problemIn(text)).toMatchObject({ status: 415 });
    expect(problemIn(unknown)).toMatchObject({ status: 404 });
    expect(problemIn(created)).toMatchObject({ status: 415 });
    expect(problemIn(ended)).toMatchObject({ status: 409, code: 'CLONE_ENDED' });
  });
});

test('the log says who created, cancelled and forgot which clone', async () => {
  await using product = await openProduct();
  await product.register();
  const { id } = (await product.post(specFor('main'))).json<Clone>();
  await product.post({}, `/v1/clones/${id}/cancel`, asAdmin);
  await product.app.inject({ method: 'DELETE', url: `/v1/clones/${id}`, headers: asOperator });

  const audited = product.lines.filter(({ audit }) => audit === true);

  expect(audited.map(({ msg, token, cloneId }) => [msg, token, cloneId])).toEqual([
    ['clone created', 'the-operator', id],
    ['cancel requested', 'the-admin', id],
    ['clone forgotten', 'the-operator', id],
  ]);
});

test('hosts are listed with what their workers say, but without what identifies the machine', async () => {
  await using product = await openProduct();
  await product.register();

  const list = await product.app.inject({ url: '/v1/hosts', headers: asViewer });
  const one = await product.app.inject({ url: '/v1/hosts/replica-1', headers: asViewer });

  expect(one.json()).toMatchObject({ online: true, sources: ['orders', 'billing'] });
  expect(list.json()).toMatchObject({ hosts: [{ name: 'replica-1', online: true }] });
  expect(list.payload).not.toContain('machine-1');
});

test('of too many who wait at once the last is told when to come back', async () => {
  await using product = await openProduct();
  await product.register();
  const { id } = (await product.post(specFor('main'))).json<Clone>();
  const headers = { ...asViewer, prefer: 'wait=50' };

  const waiting = Array.from(
    { length: 501 },
    async () => await product.app.inject({ url: `/v1/clones/${id}`, headers }),
  );
  const first = await Promise.race(waiting);
  await product.app.close();
  const answers = await Promise.all(waiting);

  expect(problemIn(first)).toMatchObject({ status: 429, code: 'RATE_LIMITED' });
  expect(Number(first.headers['retry-after'])).toBeGreaterThan(0);
  expect(answers.filter(({ statusCode }) => statusCode === 200)).toHaveLength(500);
});

test('with Redis away every call is refused at once and works again when it is back', async () => {
  await using product = await openProduct();
  await product.register();
  await product.redis.stop();

  const refused = await product.post(specFor('main'));
  const ready = await product.app.inject('/readyz');
  const alive = await product.app.inject('/healthz');

  for (const response of [refused, ready]) {
    expect(problemIn(response)).toMatchObject({
      status: 503,
      code: 'QUEUE_UNAVAILABLE',
      retryable: true,
    });
    expect(Number(response.headers['retry-after'])).toBeGreaterThan(0);
  }
  expect(alive.statusCode).toBe(200);

  await product.redis.start();
  await expect.poll(async () => (await product.app.inject('/readyz')).statusCode).toBe(200);
  expect((await product.post(specFor('main'))).statusCode).toBe(202);
});

test('a bug is answered without its text, which the log has', async () => {
  await using broken = await openApi(NO_STORE);

  const response = await broken.app.inject({ url: '/v1/hosts', headers: asViewer });

  const problem = problemIn(response);
  expect(problem).toMatchObject({ status: 500, code: 'INTERNAL' });
  expect(response.payload).not.toMatch(/TypeError|is not a function|\.ts/);
  expect(response.payload).toContain(String(response.headers['x-request-id']));
  expect(JSON.stringify(broken.lines)).toContain('is not a function');
});
