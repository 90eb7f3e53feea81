/** Page checksums of the files of a real cluster, beside what PostgreSQL's own program says of them. */
import { open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { findPostgres, type PostgresServer, runAsPartsUser, startPrimary } from '@pgcloned/testbed';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { type FileToCheck, openPageChecker } from '../src/index.ts';

const PAGE_BYTES = 8192;

let primary: PostgresServer;
/** Of a table with more than a megabyte, relative to the data directory. */
let table: string;
beforeAll(async () => {
  primary = await startPrimary();
  await primary.query(
    'create table rows as select n, repeat(md5(n::text), 8) from generate_series(1, 8000) n',
  );
  await primary.query('create index on rows (n)');
  await primary.query('vacuum rows');
  const [row] = await primary.query<{ path: string }>(
    "select pg_relation_filepath('rows') as path",
  );
  table = row?.path ?? '';
  await primary.stop();
});
afterAll(async () => {
  await primary[Symbol.asyncDispose]();
});
afterEach(async () => {
  // What a test has put beside the relations is not sound.
  for (const name of ['900001', '900002', '900003', '900004'])
    await rm(at(`base/1/${name}`), { force: true });
});

const at = (name: string) => join(primary.dataDirectory, name);
const fileOf = (name: string, bytes = 0): FileToCheck => ({
  path: at(name),
  bytes,
  firstBlock: 0,
});
const checker = (more: { readonly judgesPages?: boolean; readonly sums?: boolean } = {}) =>
  openPageChecker({ pageBytes: PAGE_BYTES, judgesPages: true, sums: false, threads: 2, ...more });

async function flip(name: string, offset: number): Promise<void> {
  await using file = await open(at(name), 'r+');
  const { buffer } = await file.read({ buffer: Buffer.alloc(1), position: offset });
  await file.write(Buffer.of((buffer[0] ?? 0) ^ 1), 0, 1, offset);
}

async function relationFiles(): Promise<readonly string[]> {
  const all = await readdir(primary.dataDirectory, { recursive: true });
  return all.filter((name) => /^(?:global|base\/\d+)\/\d+(?:_\w+)?$/.test(name));
}

test('all pages of a sound cluster are sound, and pg_checksums has counted as many', async () => {
  await using pages = checker();

  const checked = await pages.check(
    (await relationFiles()).map((name) => fileOf(name)),
    'now',
  );

  expect(checked.flatMap((file) => file?.suspects ?? [])).toEqual([]);
  const { stdout } = await runAsPartsUser([
    ...[join(findPostgres(), 'pg_checksums'), '--check', '-D', primary.dataDirectory],
  ]);
  const scanned = Number(/Blocks scanned:\s+(\d+)/.exec(stdout.toString())?.[1]);
  expect(checked.reduce((sum, file) => sum + (file?.pages ?? 0), 0)).toBe(scanned);
});

test.each([
  ['in the middle of a page', 40 * PAGE_BYTES + 5000, 40],
  ['in the checksum', 41 * PAGE_BYTES + 8, 41],
  ['in the LSN', 42 * PAGE_BYTES + 1, 42],
  ['in the last byte', 44 * PAGE_BYTES - 1, 43],
  ['in a field that tells a new page', 45 * PAGE_BYTES + 14, 45],
])('a byte flipped %s is found', async (_, offset, block) => {
  await using pages = checker();
  await flip(table, offset);

  const [checked] = await pages.check([fileOf(table)], 'now');

  expect(checked?.suspects.map((suspect) => suspect.block)).toEqual([block]);
  await flip(table, offset);
});

test('pages that nobody has written are sound, and one byte in them is not', async () => {
  await using pages = checker();
  await writeFile(at('base/1/900001'), Buffer.alloc(3 * PAGE_BYTES));
  await writeFile(at('base/1/900002'), Buffer.alloc(3 * PAGE_BYTES).fill(1, 9000, 9001));

  const checked = await pages.check(
    ['base/1/900001', 'base/1/900002'].map((name) => fileOf(name)),
    'now',
  );

  expect(checked.map((file) => file?.suspects.map(({ block }) => block))).toEqual([[], [1]]);
});

test('a page in the place of another is found, and so is a segment under the wrong number', async () => {
  await using pages = checker();
  const content = await readFile(at(table));
  const moved = Buffer.concat([
    content.subarray(PAGE_BYTES, 2 * PAGE_BYTES),
    content.subarray(PAGE_BYTES, 2 * PAGE_BYTES),
  ]);
  await writeFile(at('base/1/900003'), moved);

  const [checked] = await pages.check([fileOf('base/1/900003')], 'now');
  const [asSecond] = await pages.check([{ ...fileOf(table), firstBlock: 131_072 }], 'now');

  expect(checked?.suspects.map(({ block }) => block)).toEqual([0]);
  expect(asSecond?.suspects).toHaveLength(asSecond?.pages ?? 0);
});

test('what does not fill a page is left out, and what is missing is null', async () => {
  await using pages = checker();
  const content = await readFile(at(table));
  await writeFile(at('base/1/900004'), content.subarray(0, 2 * PAGE_BYTES + 100));

  const checked = await pages.check([fileOf('base/1/900004'), fileOf('base/1/900005')], 'later');

  expect(checked).toMatchObject([{ bytes: 2 * PAGE_BYTES + 100, pages: 2, suspects: [] }, null]);
});

test('a file that cannot be read is named', async () => {
  await using pages = checker();

  await expect(pages.check([fileOf('base')], 'now')).rejects.toMatchObject({
    code: 'TRANSFER_FAILED',
    facts: { path: at('base'), reason: 'EISDIR' },
  });
});
