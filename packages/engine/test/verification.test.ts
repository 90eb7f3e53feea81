/**
 * What becomes of a page that is not sound in the copy: asked from a real source, over a real sshd.
 *
 * The copy is a copy of its files, damaged by the test, so that it is known which page is wrong on which side.
 */
import { cp, mkdir, open, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openSession, type Session, startBackup } from '@pgcloned/postgres';
import { connectSsh, type SshConnection } from '@pgcloned/ssh';
import { type PostgresServer, scratchDirectory, startPrimary, startSshd } from '@pgcloned/testbed';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type { CloneRun } from '../src/clone-run.ts';
import { type CheckedRoot, openVerification, type Verified } from '../src/copy/verification.ts';
import type { Ready } from '../src/ready.ts';

const PAGE_BYTES = 8192;
const signal = new AbortController().signal;

const owned = new AsyncDisposableStack();
let primary: PostgresServer;
let ssh: SshConnection;
let session: Session;
let startLsn: string;
/** Of tables that lie still, relative to the data directory. */
let table: string;
let other: string;

beforeAll(async () => {
  const sshd = owned.use(await startSshd());
  ssh = owned.use(await connectSsh(sshd.target, { signal }));
  primary = owned.use(await startPrimary({ settings: { autovacuum: 'off' } }));
  for (const name of ['still', 'other'])
    await primary.query(
      `create table ${name} as select n, repeat(md5(n::text), 8) from generate_series(1, 3000) n`,
    );
  await primary.query('vacuum (freeze) still, other');
  const [row] = await primary.query<{ still: string; other: string }>(
    `select pg_relation_filepath('still') as still, pg_relation_filepath('other') as other`,
  );
  table = row?.still ?? '';
  other = row?.other ?? '';
  session = owned.use(
    await openSession(
      {
        ...{ host: primary.host, port: primary.port, user: 'postgres', database: 'postgres' },
        ...{ password: null, passFileRefused: null, sslmode: 'disable', sslRootCertFile: null },
        tunnelDirectory: null,
      },
      { applicationName: 'test', signal },
    ),
  );
  ({ startLsn } = await startBackup(session, { label: 'test', fast: true, signal }));
});

afterAll(async () => {
  await owned.disposeAsync();
});

let copy: string;
beforeEach(async () => {
  const scratch = await scratchDirectory();
  copy = join(scratch.path, 'copy');
  await mkdir(join(copy, table, '..'), { recursive: true });
  for (const name of [table, other]) await cp(join(primary.dataDirectory, name), join(copy, name));
  return async () => {
    await scratch[Symbol.asyncDispose]();
  };
});

async function readPage(directory: string, name: string, block: number): Promise<Buffer> {
  await using file = await open(join(directory, name), 'r');
  const { buffer } = await file.read({
    buffer: Buffer.alloc(PAGE_BYTES),
    position: block * PAGE_BYTES,
  });
  return buffer;
}

async function writePage(directory: string, name: string, block: number, page: Buffer) {
  await using file = await open(join(directory, name), 'r+');
  await file.write(page, 0, PAGE_BYTES, block * PAGE_BYTES);
}

async function damage(directory: string, name: string, block: number, at = 5000): Promise<void> {
  const page = await readPage(directory, name, block);
  page[at] = (page[at] ?? 0) ^ 1;
  await writePage(directory, name, block, page);
}

const warnings: string[] = [];

async function verify({
  names = [table, other],
  kept = false,
  manifest = false,
  segmentPages = 131_072,
} = {}): Promise<Verified> {
  warnings.length = 0;
  const run = {
    plan: { spec: { verification: { pages: true, manifest } } },
    observer: { waiting: () => {} },
    warn: (text: string) => warnings.push(text),
  } as unknown as CloneRun;
  const ready = {
    facts: { dataChecksums: true, pageBytes: PAGE_BYTES, segmentPages },
    host: { runner: () => ssh },
    session,
  } as unknown as Ready;
  const root: CheckedRoot = { source: primary.dataDirectory, destination: copy, prefix: '' };
  const files = names.map((name) => ({ name, bytes: 0 }));
  await using verification = openVerification(run, ready, { startLsn });
  verification[kept ? 'kept' : 'arrived']({ root, files: files.slice(0, 1) });
  // Of the second nobody tells before the end.
  return await verification.finish([{ root, files }], signal);
}

test.each([false, true])('a copy without a fault passes (kept: %s)', async (kept) => {
  expect(await verify({ kept })).toMatchObject({ pages: 'passed' });
  expect(warnings).toEqual([]);
});

test('pages that are broken here alone are fetched again and named', async () => {
  for (const block of [2, 3, 60]) await damage(copy, table, block);
  await damage(copy, other, 0);

  expect(await verify()).toMatchObject({ pages: 'passed' });

  expect(warnings).toEqual([
    expect.stringMatching(
      `^blocks 2, 3, 60 of relation ${table} \\(file ${table}\\) .* was fetched again$`,
    ),
    expect.stringMatching(`^block 0 of relation ${other} `),
  ]);
  for (const block of [2, 3, 60])
    expect(await readPage(copy, table, block)).toEqual(
      await readPage(primary.dataDirectory, table, block),
    );
});

test('a page of a later file of a relation is counted from its first, and asked for by its place in the file', async () => {
  const segmentPages = 16;
  const name = `${table}.1`;
  const whole = await readFile(join(primary.dataDirectory, table));
  const second = whole.subarray(segmentPages * PAGE_BYTES, 2 * segmentPages * PAGE_BYTES);
  for (const directory of [primary.dataDirectory, copy])
    await writeFile(join(directory, name), second);
  await damage(copy, name, 3);

  expect(await verify({ names: [name], segmentPages })).toMatchObject({ pages: 'passed' });
  expect(warnings).toEqual([
    expect.stringMatching(`^block 19 of relation ${table} \\(file ${name}\\) had come over`),
  ]);
  expect((await readFile(join(copy, name))).equals(second)).toBe(true);
  for (const directory of [primary.dataDirectory, copy]) await damage(directory, name, 3);
  expect(await verify({ names: [name], segmentPages })).toMatchObject({ pages: 'failed' });
  expect(warnings).toEqual([expect.stringMatching(`^block 19 of .* is corrupt on the source`)]);
  await rm(join(primary.dataDirectory, name));
});

test('a page of the visibility map that was torn is fetched again, and is no news', async () => {
  // Its LSN tells nothing of a change: the header is that of before, and the rest came later.
  const map = `${table}_vm`;
  await cp(join(primary.dataDirectory, map), join(copy, map));
  await damage(copy, map, 0, 30);

  expect(await verify({ names: [map] })).toMatchObject({ pages: 'passed' });

  expect(warnings).toEqual([]);
  expect(await readPage(copy, map, 0)).toEqual(await readPage(primary.dataDirectory, map, 0));
});

test.each([
  ['content', 5000],
  ['LSN', 1],
])('a page whose %s is wrong on the source is left as it is, and named', async (_, at) => {
  for (const directory of [primary.dataDirectory, copy]) await damage(directory, other, 7, at);

  const verified = await verify();

  expect(verified).toMatchObject({ pages: 'failed' });
  expect(warnings).toEqual([
    `block 7 of relation ${other} (file ${other}) is corrupt on the source: its checksum is wrong`,
  ]);
  await damage(primary.dataDirectory, other, 7, at);
});

test('a page that was torn while it came over, and is written by replay, is no news', async () => {
  // Changed after the start of the backup: the newer half has come, and then the older one.
  const before = await readPage(copy, table, 5);
  await primary.query(`update still set n = -n where ctid = '(5,1)'`);
  await primary.query('checkpoint');
  const after = await readPage(primary.dataDirectory, table, 5);
  const torn = Buffer.concat([after.subarray(0, 4096), before.subarray(4096)]);
  await writePage(copy, table, 5, torn);

  expect(await verify()).toMatchObject({ pages: 'passed' });

  expect(warnings).toEqual([]);
  // Nobody has asked for it again.
  expect(await readPage(copy, table, 5)).toEqual(torn);
});

test('an older half that came before the newer one is no fault either', async () => {
  const before = await readPage(copy, other, 9);
  await primary.query(`update other set n = -n where ctid = '(9,1)'`);
  await primary.query('checkpoint');
  const after = await readPage(primary.dataDirectory, other, 9);
  await writePage(copy, other, 9, Buffer.concat([before.subarray(0, 4096), after.subarray(4096)]));

  expect(await verify()).toMatchObject({ pages: 'passed' });

  expect(warnings).toEqual([]);
  expect(await readPage(copy, other, 9)).toEqual(after);
});

test.each(['truncated', 'dropped'])(
  'what the source has %s meanwhile replay removes here',
  async (fate) => {
    await primary.query('create table gone as select * from still');
    await primary.query('checkpoint');
    const [row] = await primary.query<{ path: string }>(
      `select pg_relation_filepath('gone') as path`,
    );
    const gone = row?.path ?? '';
    await cp(join(primary.dataDirectory, gone), join(copy, gone));
    // As if it had been changed last before the backup.
    const page = await readPage(copy, gone, 1);
    page.writeBigUInt64LE(1n, 0);
    await writePage(copy, gone, 1, page);
    await primary.query(fate === 'dropped' ? 'drop table gone' : 'truncate gone');
    await primary.query('checkpoint');

    expect(await verify({ names: [gone] })).toMatchObject({ pages: 'passed' });

    expect(warnings).toEqual([]);
    await primary.query('drop table if exists gone');
  },
);

test('the sums are those of what is here in the end, a page that was mended included', async () => {
  const { sums: whole } = await verify({ manifest: true });
  await damage(copy, table, 4);

  const { sums } = await verify({ manifest: true });

  expect(sums.get(table)?.crc).toBe(whole.get(table)?.crc);
  expect(sums.size).toBe(2);
});
