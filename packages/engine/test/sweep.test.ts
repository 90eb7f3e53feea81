/** What becomes of the directories of a clone whose worker is gone. */
import { mkdir, mkdtemp, readdir, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { appendSettings } from '@pgcloned/postgres';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { ClonePlan } from '../src/plan.ts';
import { type SweepOptions, sweepClone } from '../src/sweep.ts';
import { makePlace } from '../src/target/layout.ts';
import { makeLockSet } from '../src/target/locks.ts';
import { writeMarker } from '../src/target/marker.ts';
import { type FilledDirectory, prepareDirectory } from '../src/target/prepare.ts';
import { NOT_READY } from '../src/target/unready.ts';

const signal = new AbortController().signal;
const cloneId = 'f'.repeat(32);
let root = '';

beforeEach(async () => {
  root = await realpath(await mkdtemp(join(tmpdir(), 'engine-sweep-')));
});

afterEach(async () => {
  await rm(root, { recursive: true });
});

/** Data, WAL and a tablespace, each below a directory that had to be made for it, with something in it. */
async function begin({ replaces = false, ownerId = cloneId } = {}): Promise<FilledDirectory[]> {
  const filled: FilledDirectory[] = [];
  const dataDirectory = join(root, 'cluster/main');
  for (const [kind, name] of [
    ['data', 'cluster/main'],
    ['wal', 'wal/main'],
    ['tablespace', 'space/PG_15_202209061'],
  ] as const) {
    const place = makePlace(kind, join(root, name), { cloneId, replaces });
    const prepared = await prepareDirectory(place, {
      cloneId: ownerId,
      dataDirectory,
      mode: 0o700,
    });
    await writeFile(join(prepared.path, 'file'), 'content');
    filled.push({ ...prepared, final: place.final });
  }
  return filled;
}

async function sweep(
  becomes: SweepOptions['becomes'],
  filled: readonly FilledDirectory[],
  method: 'rsync' | 'reflink' = 'rsync',
) {
  const plan = {
    id: cloneId,
    spec: {
      method,
      target: {
        dataDirectory: join(root, 'cluster/main'),
        walDirectory: join(root, 'wal/main'),
        temporaryWalDirectory: null,
      },
    },
    host: { dataRoots: [root], protectedPaths: [] },
  };
  return await sweepClone(plan as unknown as ClonePlan, { becomes, filled, signal });
}

test.each([
  ['that goes on', 'queued', { replaces: false }],
  ['that goes on and replaces another', 'queued', { replaces: true }],
  ['that has failed', 'failed', { replaces: false }],
] as const)('all that a clone %s has copied stays', async (_, becomes, how) => {
  const filled = await begin(how);

  expect(await sweep(becomes, filled)).toEqual({
    published: false,
    leftovers: [],
  });

  for (const { path } of filled) expect(await readdir(path)).toContain('file');
});

test('a published clone in which the onReady files have not run is none', async () => {
  const [data, ...others] = await begin();
  const path = data?.path ?? '';
  await mkdir(join(path, 'global'));
  await writeFile(join(path, 'global/pg_control'), 'complete');
  await writeMarker(path, 'data', { cloneId, dataDirectory: path, finished: true });
  await writeFile(join(path, 'postgresql.auto.conf'), appendSettings('', NOT_READY));

  const report = await sweep('queued', [...(data === undefined ? [] : [data]), ...others]);

  expect(report).toEqual({ published: false, leftovers: [] });
});

test('of a clone by reflinks that has failed nothing stays: nobody builds upon it', async () => {
  await sweep('failed', await begin(), 'reflink');

  expect(await readdir(root)).toEqual([]);
});

test('what was built aside for a clone that has failed goes', async () => {
  await sweep('failed', await begin({ replaces: true }));

  expect(await readdir(root)).toEqual([]);
});

test.each([false, true])(
  'of a clone that was cancelled nothing stays, nor what was made for it (built aside: %s)',
  async (replaces) => {
    await mkdir(join(root, 'wal'));

    await sweep('cancelled', await begin({ replaces }));

    expect(await readdir(root)).toEqual(['wal']);
    expect(await readdir(join(root, 'wal'))).toEqual([]);
  },
);

test('of a worker that wrote down nothing the directories are found that its clone names', async () => {
  await begin();

  await sweep('cancelled', []);

  expect(await readdir(join(root, 'cluster'))).toEqual([]);
  expect(await readdir(join(root, 'wal'))).toEqual([]);
});

test('what another clone has taken over meanwhile stays', async () => {
  const filled = await begin({ ownerId: 'e'.repeat(32) });

  await sweep('cancelled', filled);

  for (const { path } of filled) expect(await readdir(path)).toContain('file');
});

test('a published clone stays, whatever becomes of its record', async () => {
  const filled = await begin();
  const dataDirectory = join(root, 'cluster/main');
  await writeMarker(dataDirectory, 'data', { cloneId, dataDirectory, finished: true });
  await mkdir(join(dataDirectory, 'global'));
  await writeFile(join(dataDirectory, 'global/pg_control'), '');

  expect((await sweep('cancelled', filled)).published).toBe(true);

  for (const { path } of filled) expect(await readdir(path)).toContain('file');
});

test('what a dying child of the same clone still locks is waited for', async () => {
  const filled = await begin();
  const dying = makeLockSet(cloneId);
  await dying.take([join(root, 'cluster/main')], signal);
  const swept = sweep('cancelled', filled);
  const first = await Promise.race([
    swept.then(() => 'swept'),
    new Promise((resolve) => setTimeout(resolve, 300, 'waits')),
  ]);

  await dying[Symbol.asyncDispose]();
  await swept;

  expect(first).toBe('waits');
  expect(await readdir(root)).toEqual([]);
});
