/**
 * What is wrong with a clone asked for over HTTP: a mistake that can be seen in the request is answered at once, one that
 * only the host of the clone can see ends the record. Either way there is a code, a message and a hint, and nothing was
 * written: neither in the data root nor outside.
 */
import { readdir, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { ErrorCode } from '@pgcloned/contract';
import { scratchDirectory } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Product, startProduct } from './product.ts';

const owned = new AsyncDisposableStack();
let product: Product;
let outside = '';

beforeAll(async () => {
  product = owned.use(await startProduct());
  outside = owned.use(await scratchDirectory()).path;
  await symlink(outside, product.at('way out'));
});

afterAll(async () => {
  await owned.disposeAsync();
});

async function expectNothingWritten(): Promise<void> {
  expect(await readdir(product.at())).toEqual(['way out']);
  expect(await readdir(outside)).toEqual([]);
}

interface BadRequest {
  readonly given: string;
  readonly body: () => unknown;
  readonly code: ErrorCode;
  /** In `detail`, or in one of the `errors`. */
  readonly says: string;
  readonly hint: string;
}

const BAD_REQUESTS: readonly BadRequest[] = [
  {
    given: 'a relative path',
    body: () => product.specOf('new', { target: { dataDirectory: 'main' } }),
    code: 'REQUEST_INVALID',
    says: 'must be an absolute path',
    hint: 'Mend each place that `errors` points to',
  },
  {
    given: 'a path with ..',
    body: () =>
      product.specOf('new', { target: { dataDirectory: `${product.at()}/../${outside}` } }),
    code: 'REQUEST_INVALID',
    says: 'must not contain . or .. components',
    hint: 'Mend each place that `errors` points to',
  },
  {
    given: 'an unknown field',
    body: () => product.specOf('new', { trasfer: {} }),
    code: 'REQUEST_INVALID',
    says: 'is not a known field; there are source, target, method, transfer',
    hint: 'Mend each place that `errors` points to',
  },
  {
    given: 'a setting that would run a program',
    body: () => product.specOf('new', { replica: { settings: { archive_command: 'rm -rf /' } } }),
    code: 'SETTING_FORBIDDEN',
    says: 'setting archive_command may not be set by a request',
    hint: 'let the operator of the host add archive_command to worker.allowedSettings',
  },
  {
    given: 'a source that the host does not have',
    body: () => product.specOf('new', { source: { name: 'payments' } }),
    code: 'SOURCE_UNKNOWN',
    says: 'host testbed has no source payments',
    hint: 'Take one of orders',
  },
  {
    given: 'a source that is spelled out',
    body: () => product.specOf('new', { source: product.source.configuration }),
    code: 'NOT_SUPPORTED',
    says: 'a host in a request is not supported',
    hint: 'Name a source that the configuration of the worker lists under sources',
  },
  {
    given: 'a host that nobody knows',
    body: () => product.specOf('new', { target: { host: 'elsewhere' } }),
    code: 'HOST_UNKNOWN',
    says: 'no worker has registered for host elsewhere',
    hint: 'Start `pgcloned worker` on that host',
  },
];

test.each(BAD_REQUESTS)(
  '$given is answered at once by 422 $code, which names the remedy',
  async ({ body, code, says, hint }) => {
    const answer = await product.pgcloned.request('POST', '/v1/clones', body());

    expect(answer.status).toBe(422);
    expect(answer.headers.get('content-type')).toContain('application/problem+json');
    expect(answer.body).toMatchObject({ status: 422, code, hint: expect.stringContaining(hint) });
    expect(JSON.stringify([answer.body.detail, answer.body.errors])).toContain(says);
    expect((await product.pgcloned.request('GET', '/v1/clones')).body.clones).toEqual([]);
    await expectNothingWritten();
  },
);

test.each([
  { given: 'outside the data root', target: () => ({ dataDirectory: join(outside, 'main') }) },
  { given: 'that is the data root itself', target: () => ({ dataDirectory: product.at() }) },
  { given: 'above the data root', target: () => ({ dataDirectory: dirname(product.at()) }) },
  {
    given: 'that a symbolic link leads out of the data root',
    target: () => ({ dataDirectory: product.at('way out', 'main') }),
  },
  {
    given: 'whose WAL would lie outside',
    target: () => ({ walDirectory: join(outside, 'wal') }),
  },
  {
    given: 'whose WAL would be collected outside',
    target: () => ({ temporaryWalDirectory: outside }),
  },
])('a target $given is refused by its host, which names its data roots', async ({ target }) => {
  const created = await product.create('new', { target: target() });

  const ended = await product.ended(created.id);

  expect(ended).toMatchObject({
    state: 'failed',
    error: {
      code: 'TARGET_OUTSIDE_DATA_ROOTS',
      phase: 'preflight',
      retryable: false,
      message: expect.stringContaining('does not lie below a data root of this host'),
      hint: expect.stringContaining('worker.dataRoots'),
      facts: { dataRoots: product.at() },
    },
    instance: { state: 'absent' },
    leftovers: [],
  });
  await expectNothingWritten();
  await product.expectNothingLeft(ended);
  const forgotten = await product.pgcloned.request('DELETE', `/v1/clones/${created.id}`);
  expect(forgotten.status).toBe(204);
});
