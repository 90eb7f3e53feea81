import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { scratchDirectory } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { NO_DEATHS, openRunJournal } from '../src/run-journal.ts';
import { someClone } from './worker-parts.ts';

const DAY_MS = 86_400_000;

test('what was written is read back, and a clone that was never begun is not there', async () => {
  await using scratch = await scratchDirectory();
  const journal = await openRunJournal({ directory: scratch.path, onUnreadable: () => {} });
  const directory = { path: '/srv/x', final: '/srv/x', kind: 'data', madeFrom: '/srv' } as const;
  const run = {
    clone: someClone(),
    workerId: 'w',
    reported: false,
    filled: [directory],
    deaths: { count: 1, leastMissingBytes: 100 },
    begunFrom: 'standby' as const,
    hasStopped: true,
  };

  await journal.write(run);

  expect(await journal.read(run.clone.id)).toEqual(run);
  expect(await journal.list()).toEqual([run]);
  expect(await journal.read(someClone().id)).toBeUndefined();
});

test('a file that is no run is told of and left alone', async () => {
  await using scratch = await scratchDirectory();
  const unreadable: string[] = [];
  const journal = await openRunJournal({
    directory: scratch.path,
    onUnreadable: (path) => unreadable.push(path),
  });
  const path = join(scratch.path, 'notes.json');
  await writeFile(path, '{"clone": {}}');

  expect(await journal.list()).toEqual([]);
  await journal.prune();

  expect(unreadable).toContain(path);
  expect(await readdir(scratch.path)).toEqual(['notes.json']);
});

test('only runs that ended long ago and were reported are removed', async () => {
  await using scratch = await scratchDirectory();
  const journal = await openRunJournal({ directory: scratch.path, onUnreadable: () => {} });
  const longAgo = new Date(Date.now() - 40 * DAY_MS).toISOString();
  const old = { ...someClone(), state: 'succeeded' as const, endedAt: longAgo };
  const running = { ...someClone(), state: 'running' as const, createdAt: longAgo };
  const recent = { ...someClone(), state: 'failed' as const, endedAt: new Date().toISOString() };
  const unreported = { ...someClone(), state: 'failed' as const, endedAt: longAgo };
  for (const clone of [old, running, recent, unreported]) {
    const reported = clone !== unreported;
    const rest = { filled: [], deaths: NO_DEATHS, begunFrom: null, hasStopped: false };
    await journal.write({ clone, workerId: 'w', reported, ...rest });
  }

  await journal.prune();

  const left = (await journal.list()).map(({ clone }) => clone.id);
  expect(left).toEqual([running.id, recent.id, unreported.id]);
});
