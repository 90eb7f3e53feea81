/** A preflight through the API, as a provisioning system and the command line ask for it; what it finds is tested in the engine. */
import { existsSync } from 'node:fs';
import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { runProcess } from '@pgcloned/process';
import { runsAsRoot } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Product, startProduct } from './product.ts';

let product: Product;

beforeAll(async () => {
  product = await startProduct();
});

afterAll(async () => {
  await product[Symbol.asyncDispose]();
});

test('a clone that can be made is ready, with what it would take, and nothing is left on either side', async () => {
  const { source, pgcloned, specOf, at } = product;

  const { status, body } = await pgcloned.request('POST', '/v1/preflights', specOf('fit'));

  expect(status, JSON.stringify(body)).toBe(200);
  expect(body).toMatchObject({
    ready: true,
    findings: [{ severity: 'warning', code: 'TABLESPACES_SHARED', remedies: [] }],
    notChecked: [],
    facts: {
      source: {
        version: expect.stringMatching(/^\d+\.\d+$/),
        bytes: expect.any(Number),
        tablespaces: [],
      },
      host: { filesystems: [{ neededBytes: expect.any(Number) }] },
      estimate: { seconds: expect.any(Number), bytesPerSecond: expect.any(Number) },
    },
  });
  expect(existsSync(at('fit'))).toBe(false);
  expect(await readdir(at())).toEqual([]);
  expect(
    await source.primary.query(
      `SELECT (SELECT count(*) FROM pg_replication_slots) AS slots,
              (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgcloned%') AS sessions`,
    ),
  ).toEqual([{ slots: '0', sessions: '0' }]);
});

test('several preflights of one target at a time, and one beside its clone, are in nobody’s way', async () => {
  const { pgcloned, specOf, create, reached, ended } = product;
  const ask = async () => await pgcloned.request('POST', '/v1/preflights', specOf('shared'));

  const alone = await Promise.all([ask(), ask(), ask()]);
  const clone = await create('shared', { transfer: { maxRate: 4_000_000, workers: 2 } });
  await reached(clone.id, 'copy-files');
  const beside = await ask();

  expect(alone.map(({ body }) => body.ready)).toEqual([true, true, true]);
  expect(beside.body.ready).toBe(false);
  expect(beside.body.findings[0]).toMatchObject({
    severity: 'error',
    code: 'TARGET_BUSY',
    facts: { holder: clone.id },
  });
  expect((await ended(clone.id)).state).toBe('succeeded');
});

test('the command line tells everything at once, each with its command, and ends with a status of its own', async () => {
  const { source, cli, specOf } = product;
  await source.primary.query('REVOKE pg_monitor FROM cloner');
  await source.primary.query('ALTER ROLE cloner NOREPLICATION');

  const before = await cli(['preflight', '-f', '-'], JSON.stringify(specOf('told')));
  await source.primary.query('GRANT pg_monitor TO cloner');
  await source.primary.query('ALTER ROLE cloner REPLICATION');
  const after = await cli(['--json', 'preflight', '-f', '-'], JSON.stringify(specOf('told')));

  expect(before.status).toBe(7);
  const lines = before.stdout.toString().split('\n');
  expect(lines[0]).toBe('not ready');
  expect(lines).toContain('      ALTER ROLE cloner REPLICATION;');
  expect(lines).toContain('      GRANT pg_monitor TO cloner;');
  expect(lines.filter((line) => line.includes('REPLICATION;'))).toHaveLength(2);
  expect(before.stderr.toString()).toContain('code: PREFLIGHT_FAILED');
  expect(after.status, after.stderr.toString()).toBe(0);
  expect(JSON.parse(after.stdout.toString())).toMatchObject({ ready: true });
});

test.runIf(runsAsRoot)(
  'below a directory of somebody else the target is made as printed, and that directory stays whose it is',
  async () => {
    const { pgcloned, specOf, at } = product;
    await mkdir(at('of-root'));
    const spec = specOf('of-root/deeper');
    const ask = async () => (await pgcloned.request('POST', '/v1/preflights', spec)).body;

    const before = await ask();
    const [finding] = before.findings;
    const [remedy] = finding.remedies;
    await runProcess(
      { file: 'sh', args: ['-c', remedy.text], env: {} },
      { signal: AbortSignal.timeout(60_000) },
    );

    expect(finding).toMatchObject({ severity: 'error', code: 'TARGET_NOT_WRITABLE' });
    expect(remedy).toMatchObject({ kind: 'shell', on: 'host', where: 'root' });
    expect(await ask()).toMatchObject({ ready: true, notChecked: [] });
    expect((await stat(at('of-root'))).uid).toBe(0);
    await rm(at('of-root'), { recursive: true });
  },
);

test('where blocks cannot be shared a copy is offered, and then told of', async () => {
  const { source, cli } = product;
  // Another filesystem than that of the source, whatever that is.
  const spec = {
    source: { local: true, dataDirectory: source.primary.dataDirectory },
    method: 'reflink',
    target: { dataDirectory: '/dev/shm/pgcloned-test/main' },
  };
  const ask = async (more: object) => {
    const input = JSON.stringify({ ...spec, ...more });
    return JSON.parse(
      (await cli(['--json', 'run', '--preflight', '-f', '-'], input)).stdout.toString(),
    );
  };

  const before = await ask({});
  const [{ remedies }] = before.findings;
  const after = await ask(JSON.parse(remedies[0].text));

  expect(before.findings[0]).toMatchObject({ severity: 'error', code: 'REFLINK_UNSUPPORTED' });
  expect(after.findings).toContainEqual(
    expect.objectContaining({ severity: 'warning', code: 'REFLINK_FALLBACK' }),
  );
  expect(after).toMatchObject({ ready: true, notChecked: [] });
});

test('without its worker a host cannot be asked, and what to do is said', async () => {
  const { pgcloned, specOf } = product;
  const elsewhere = await pgcloned.request('POST', '/v1/preflights', {
    ...specOf('x'),
    target: { host: 'nowhere', dataDirectory: '/srv/x' },
  });

  expect(elsewhere).toMatchObject({ status: 422, body: { code: 'HOST_UNKNOWN' } });
});
