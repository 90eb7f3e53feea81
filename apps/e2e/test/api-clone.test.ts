/**
 * Clones through the API of `pgcloned up`: one POST makes a standby that streams, and everything that is told about it
 * meanwhile and afterwards is true.
 */
import { symlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type CloneEvent, connectApi } from '@pgcloned/client';
import { type Clone, PHASES } from '@pgcloned/contract';
import {
  adoptServer,
  compareTables,
  freePort,
  makeDirectory,
  stopServer,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Product, SLOW, startProduct } from './product.ts';
import { runClone } from './run-clone.ts';

/** As it is here, and true. */
const WARNING = expect.stringContaining('source and replica share a host');

const owned = new AsyncDisposableStack();
let product: Product;

beforeAll(async () => {
  product = owned.use(
    await startProduct({ worker: { concurrency: 3, allowedSettings: ['archive_command'] } }),
  );
  await product.source.primary.query('CREATE TABLE letters AS SELECT generate_series(1, 1000) id');
});

afterAll(async () => {
  await owned.disposeAsync();
});

const request: Product['pgcloned']['request'] = async (...call) =>
  await product.pgcloned.request(...call);

async function eventsOf(id: string): Promise<readonly CloneEvent[]> {
  const { url, token } = product.pgcloned;
  const signal = AbortSignal.timeout(110_000);
  const events: CloneEvent[] = [];
  for await (const event of connectApi({ url, token }).watch(id, { signal })) events.push(event);
  return events;
}

test('one POST makes a standby that streams, and record, events and log tell how', async () => {
  const { source, at } = product;
  const port = await freePort();
  const dataDirectory = at('one post', 'main');
  await using _ = { [Symbol.asyncDispose]: () => stopServer(dataDirectory) };

  const accepted = await request(
    'POST',
    '/v1/clones',
    product.specOf('one post', {
      transfer: { workers: 2 },
      replica: { start: true, waitFor: 'streaming', port },
      labels: { purpose: 'report' },
    }),
  );

  expect(accepted.status).toBe(202);
  const { id } = accepted.body;
  expect(accepted.headers.get('location')).toBe(`/v1/clones/${id}`);
  expect(accepted.headers.get('retry-after')).toMatch(/^\d+$/);
  expect(accepted.body).toMatchObject({
    state: 'queued',
    phase: null,
    spec: { method: 'rsync', target: { ifExists: 'fail' }, wal: { retention: 'pin' } },
  });
  const events = await eventsOf(id);

  const clone: Clone = (await request('GET', `/v1/clones/${id}`)).body;
  expect(clone).toMatchObject({
    state: 'succeeded',
    contact: 'ok',
    phase: 'start-replica',
    attempt: 1,
    host: 'testbed',
    result: { dataDirectory, timeline: 1, verification: { transfer: 'passed', wal: 'passed' } },
    instance: { state: 'running', port },
    error: null,
    warnings: [WARNING],
    leftovers: [],
  });
  expectWholeProgress(clone, 2);
  expectTrueEvents(events, clone);
  const { lines } = (await request('GET', `/v1/clones/${id}/logs`)).body;
  expect(events.filter(({ event }) => event === 'log').map(({ data }) => data)).toEqual(lines);
  for (const phase of PHASES) {
    expect(lines).toContainEqual(expect.objectContaining({ message: `phase ${phase} begins` }));
    expect(lines).toContainEqual(expect.objectContaining({ message: `phase ${phase} is done` }));
  }

  await using standby = await adoptServer(dataDirectory);
  await source.primary.query("CREATE TABLE news AS SELECT 'fresh' AS is");
  await waitForReplay(source.primary, standby);
  expect(await standby.query('SELECT * FROM news')).toEqual([{ is: 'fresh' }]);
  expect(await compareTables(source.primary, standby)).toEqual([]);
  expect(
    await source.primary.query('SELECT state FROM pg_stat_replication'),
    'the standby and nothing else is a WAL receiver',
  ).toEqual([{ state: 'streaming' }]);
  await standby.stop();
  await product.expectNothingLeft(clone);
});

/** Everything was copied, every phase is done, and each began when the one before had ended. */
function expectWholeProgress({ progress, result }: Clone, workers: number): void {
  expect(progress.bytesTotal).toBeGreaterThan(10_000_000);
  expect(progress.bytesDone).toBe(progress.bytesTotal);
  expect(progress.filesDone).toBe(progress.filesTotal);
  expect(result).toMatchObject({ files: progress.filesTotal });
  expect(progress.workers.map(({ index }) => index)).toEqual([...Array(workers).keys()]);
  expect(progress.wal).toEqual({
    startLsn: result?.startLsn,
    receivedLsn: expect.stringMatching(/^[0-9A-F]+\/[0-9A-F]+$/),
  });
  expect(progress.phases.map(({ name, state }) => `${name} ${state}`)).toEqual(
    PHASES.map((name) => `${name} done`),
  );
  const times = progress.phases.flatMap(({ startedAt, endedAt }) => [startedAt, endedAt]);
  expect(times).toEqual(times.toSorted());
  expect(times).not.toContain(null);
}

/** The record first and last, positions that ascend, progress that never goes back. */
function expectTrueEvents(events: readonly CloneEvent[], clone: Clone): void {
  expect(events[0]).toMatchObject({ event: 'clone', data: { id: clone.id } });
  expect(events.at(-1)).toMatchObject({ event: 'end', data: clone });
  expect(events.filter(({ event }) => event === 'end')).toHaveLength(1);
  // Milliseconds, and a number among those of the same one.
  const positions = events.map(({ id }) =>
    id
      .split('-')
      .map((part) => part.padStart(20, '0'))
      .join('-'),
  );
  expect(positions).toEqual(positions.toSorted());
  const done = events
    .filter((event) => event.event !== 'log')
    .map(({ data }) => data.progress.bytesDone);
  expect(done).toEqual(done.toSorted((one, other) => one - other));
}

test('an event stream that is taken up again brings no line twice', async () => {
  const { id } = await product.create('stream');
  const events = await eventsOf(id);
  const logs = events.filter(({ event }) => event === 'log');
  const seen = logs[3];

  const { body } = await request('GET', `/v1/clones/${id}/events`, undefined, {
    accept: 'text/event-stream',
    'last-event-id': seen?.id ?? '',
  });

  const messages = String(body)
    .split('\n')
    .filter((line) => line.startsWith('data: '))
    .map((line) => JSON.parse(line.slice('data: '.length)));
  expect(messages[0]).toMatchObject({ id, state: 'succeeded' });
  expect(messages.slice(1, -1)).toEqual(logs.slice(4).map(({ data }) => data));
  expect(messages.at(-1)).toMatchObject({ id, state: 'succeeded' });
});

test('a request that is repeated with its key makes one clone', async () => {
  const key = { 'idempotency-key': 'order-4711' };
  const spec = product.specOf('once');

  const first = await request('POST', '/v1/clones', spec, key);
  const again = await request('POST', '/v1/clones', spec, key);
  const { id } = first.body;
  await product.ended(id);
  const later = await request('POST', '/v1/clones', spec, key);
  const other = await request('POST', '/v1/clones', product.specOf('other'), key);

  expect([first, again, later].map(({ status }) => status)).toEqual([202, 202, 202]);
  expect([again, later].map(({ body }) => body.id)).toEqual([id, id]);
  expect(later.body.state).toBe('succeeded');
  expect(other.status).toBe(422);
  expect(other.body).toMatchObject({
    code: 'IDEMPOTENCY_KEY_REUSED',
    hint: expect.stringMatching(/new key/),
  });
  const { clones } = (await request('GET', '/v1/clones')).body;
  const { dataDirectory } = first.body.spec.target;
  expect(
    clones.filter((clone: Clone) => clone.spec.target.dataDirectory === dataDirectory),
  ).toHaveLength(1);
});

test('a reader waits for the next change, and is told when there is none', async () => {
  const { id } = await product.create('waiting', { transfer: SLOW });
  await product.until(id, ({ phase }) => phase === 'copy-files');
  const path = `/v1/clones/${id}`;

  const now = await request('GET', path);
  const next = await request('GET', path, undefined, {
    prefer: 'wait=20',
    'if-none-match': now.headers.get('etag') ?? '',
  });

  expect(next.status).toBe(200);
  expect(next.headers.get('preference-applied')).toBe('wait=20');
  expect(next.headers.get('etag')).not.toBe(now.headers.get('etag'));
  await product.until(id, ({ progress }) => progress.bytesPerSecond > 0);
  const ended = await product.ended(id);
  expect(ended.state).toBe('succeeded');
  const last = await request('GET', path);
  const same = await request('GET', path, undefined, {
    prefer: 'wait=20',
    'if-none-match': last.headers.get('etag') ?? '',
  });
  expect(same.status).toBe(304);
});

test('the host tells what it is, and its allowed settings may be asked for', async () => {
  const { body } = await request('GET', '/v1/hosts');
  const asked = async (name: string) =>
    await request(
      'POST',
      '/v1/clones?validateOnly=true',
      product.specOf('settings', { replica: { settings: { [name]: '/bin/true' } } }),
    );

  expect(body.hosts).toMatchObject([
    {
      name: 'testbed',
      online: true,
      concurrency: 3,
      dataRoots: [product.at()],
      sources: ['orders'],
      allowedSettings: ['archive_command'],
      filesystems: [{ path: product.at(), freeBytes: expect.any(Number) }],
    },
  ]);
  expect((await request('GET', '/v1/hosts/testbed')).body).toMatchObject({ name: 'testbed' });
  expect((await asked('archive_command')).status).toBe(200);
  expect(await asked('restore_command')).toMatchObject({
    status: 422,
    body: {
      code: 'SETTING_FORBIDDEN',
      hint: expect.stringContaining('worker.allowedSettings'),
    },
  });
});

test('the command line creates, follows, lists, shows, cancels and deletes clones', async () => {
  const json = (text: Buffer) => JSON.parse(text.toString());
  const spec = (name: string, more = {}) => JSON.stringify(product.specOf(name, more));

  const waited = await product.cli(
    ['clone', 'create', '--wait', '--progress', 'plain', '-f', '-'],
    spec('by command'),
  );
  const created = await product.cli(
    ['--json', 'clone', 'create', '-f', '-'],
    // A minute: it is cancelled long after three commands have begun and ended.
    spec('by command again', { transfer: { ...SLOW, maxRate: 400_000 } }),
  );
  const { id } = json(created.stdout);
  await product.reached(id, 'copy-files');
  const watching = product.cli(['clone', 'watch', id]);
  const hosts = await product.cli(['host', 'list']);
  const early = await product.cli(['clone', 'delete', id]);
  const cancelled = await product.cli(['clone', 'cancel', id]);
  const watched = await watching;
  const list = await product.cli(['clone', 'list', '--limit', '2']);
  const shown = await product.cli(['clone', 'show', id]);
  const deleted = await product.cli(['clone', 'delete', id]);
  const gone = await product.cli(['clone', 'show', id]);

  expect(waited.stderr).toMatch(/^clone [0-9a-f]{32}$/m);
  expect(waited.stdout.toString()).toContain('clone of orders is ready in');
  expect(waited.status).toBe(0);
  expect(hosts.stdout.toString()).toMatch(/testbed/);
  expect(early).toMatchObject({ status: 5, stderr: expect.stringContaining('has not ended') });
  expect(cancelled.stdout.toString()).toBe(`clone ${id} is cancelling\n`);
  expect(watched).toMatchObject({ status: 130, stderr: expect.stringContaining('was cancelled') });
  const [, newest, before] = list.stdout.toString().split('\n');
  expect(newest).toMatch(new RegExp(`^${id} .* cancelled`));
  expect(before).toMatch(/succeeded/);
  expect(shown.stdout.toString()).toMatch(/state +cancelled/);
  expect(deleted).toMatchObject({ status: 0 });
  expect(gone).toMatchObject({ status: 4, stderr: expect.stringContaining(id) });
});

test('two clones of one primary run at once on one host', async () => {
  const ids = await Promise.all(
    ['left', 'right'].map(async (name) => (await product.create(name, { transfer: SLOW })).id),
  );
  for (const id of ids) await product.until(id, ({ phase }) => phase === 'copy-files');

  const { clones } = (await request('GET', '/v1/clones?state=running')).body;
  const [host] = (await request('GET', '/v1/hosts')).body.hosts;
  const ended = await Promise.all(ids.map(product.ended));

  expect(clones.map(({ id }: Clone) => id).toSorted()).toEqual(ids.toSorted());
  expect(host).toMatchObject({ online: true });
  expect(host.runningClones.toSorted()).toEqual(ids.toSorted());
  for (const clone of ended) {
    expect(clone).toMatchObject({ state: 'succeeded', warnings: [WARNING], leftovers: [] });
    expectWholeProgress(clone, SLOW.workers);
    await product.expectNothingLeft(clone);
  }
});

describe('while a clone fills a directory', () => {
  let holder: Clone;

  beforeAll(async () => {
    await makeDirectory(product.at('busy'));
    await symlink(product.at('busy'), product.at('alias'));
    holder = await product.create('busy', { transfer: { ...SLOW, maxRate: 500_000 } });
    await product.until(holder.id, ({ phase }) => phase === 'copy-files');
  });

  afterAll(async () => {
    await request('POST', `/v1/clones/${holder.id}/cancel`);
    expect((await product.ended(holder.id)).state).toBe('cancelled');
    await product.expectNothingLeft(holder);
  });

  const overlapping = () => {
    const { dataDirectory } = holder.spec.target;
    return {
      same: dataDirectory,
      below: `${dataDirectory}/base/inner`,
      above: dirname(dataDirectory),
      alias: product.at('alias', 'main'),
    };
  };

  test.each(['same', 'below', 'above'] as const)(
    'the API refuses another one into it: %s',
    async (where) => {
      const target = { dataDirectory: overlapping()[where] };
      for (const query of ['', '?validateOnly=true']) {
        const answer = await request(
          'POST',
          `/v1/clones${query}`,
          product.specOf('second', { target }),
        );
        expect(answer).toMatchObject({
          status: 409,
          body: {
            code: 'TARGET_BUSY',
            holder: holder.id,
            retryable: true,
            hint: expect.stringContaining(holder.id),
          },
        });
      }
    },
  );

  test('the worker refuses another one through a symbolic link', async () => {
    const target = { dataDirectory: overlapping().alias };
    const { id } = await product.create('second', { target });

    const ended = await product.ended(id);

    expect(ended).toMatchObject({
      state: 'failed',
      phase: 'preflight',
      instance: { state: 'absent' },
      error: {
        code: 'TARGET_BUSY',
        retryable: true,
        facts: { holder: holder.id },
        hint: expect.stringMatching(/[Ww]ait/),
      },
    });
  });

  test.each(['same', 'below', 'above', 'alias'] as const)(
    '`pgcloned run` refuses another one into it: %s',
    async (where) => {
      const ended = await runClone(product.source, {
        target: { dataDirectory: overlapping()[where] },
      });

      const inside = 'lies inside the data directory';
      // Once so much has arrived that it can be seen that a cluster is being made above.
      if (where === 'below' && ended.error.code === 'TARGET_INVALID') {
        expect(ended).toMatchObject({
          status: 7,
          error: { message: expect.stringContaining(inside) },
        });
        return;
      }
      expect(ended).toMatchObject({
        status: 5,
        error: { code: 'TARGET_BUSY', phase: 'preflight', facts: { holder: holder.id } },
      });
    },
  );

  test('and the clone that holds it goes on', async () => {
    expect((await request('GET', `/v1/clones/${holder.id}`)).body).toMatchObject({
      state: 'running',
      phase: 'copy-files',
      error: null,
    });
  });
});
