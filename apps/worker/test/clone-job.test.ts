/** One clone with a journal of its own, so that a test can break it; its queue takes whatever it is told. */
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CONTRACT_VERSION } from '@pgcloned/contract';
import { type ScratchDirectory, scratchDirectory } from '@pgcloned/testbed';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { startCloneJob } from '../src/clone-job.ts';
import { openRunJournal } from '../src/run-journal.ts';
import { makeSlots } from '../src/slots.ts';
import { eventually, playedEngine, someClone, workerOptions } from './worker-parts.ts';

let scratch: ScratchDirectory;

beforeEach(async () => {
  scratch = await scratchDirectory();
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
});
afterEach(async () => {
  vi.useRealTimers();
  await scratch[Symbol.asyncDispose]();
});

test('a state directory that is full for a moment costs a clone nothing', async () => {
  const lines: string[] = [];
  const log = pino({}, { write: (line: string) => lines.push(line) });
  const directory = join(scratch.path, 'runs');
  const journal = await openRunJournal({ directory, onUnreadable: () => {} });
  const engine = playedEngine();
  const clone = someClone();
  const job = startCloneJob(
    { clone, contract: CONTRACT_VERSION, before: null },
    {
      ...engine,
      makeRoom: () => Promise.resolve(),
      giveWay: () => Promise.reject(new Error('no test asks for it')),
      takeBack: () => Promise.reject(new Error('no test asks for it')),
      queue: {
        publish: () => {},
        confirm: async () => await Promise.resolve('stored'),
        appendLog: () => {},
      },
      journal,
      slots: makeSlots(1),
      workerId: 'worker',
      host: workerOptions({ redisUrl: '', directory: scratch.path }),
      log,
      signal: new AbortController().signal,
    },
  );
  await eventually(() => engine.calls.length === 1);

  // Nothing can be renamed to the name of a directory.
  const path = join(directory, `${clone.id}.json`);
  await rm(path);
  await mkdir(path);
  vi.advanceTimersByTime(5_000);
  await eventually(() => lines.some((line) => line.includes('journal')));

  expect(engine.calls[0]?.signal.aborted).toBe(false);
  await rm(path, { recursive: true });
  engine.calls[0]?.succeed();
  await job.reported;
  expect((await journal.read(clone.id))?.clone.state).toBe('succeeded');
});
