/**
 * Parts that stand still without ending: what can be begun again is, within the limit, and what is only slow is waited for.
 */
import { join } from 'node:path';
import { listProcesses, type Source, scratchDirectory, startSource } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Running, startClone } from './run-clone.ts';

const STALL_SECONDS = 3;
const SLOW = { maxRate: 5_000_000, workers: 2 };

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(await startSource());
  directory = owned.use(await scratchDirectory()).path;
});

afterAll(async () => {
  await owned.disposeAsync();
});

async function start(name: string): Promise<Running> {
  return await startClone(
    source,
    { target: { dataDirectory: join(directory, name) }, transfer: SLOW },
    { env: { PGCLONED_WORKER_STALL_SECONDS: String(STALL_SECONDS) } },
  );
}

/** Stops processes for as long as it lives. */
function stopped(pids: readonly number[]): Disposable {
  const signal = (name: 'SIGSTOP' | 'SIGCONT') => {
    for (const pid of pids) {
      try {
        process.kill(pid, name);
      } catch (error) {
        // What was given up may have been ended meanwhile.
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
      }
    }
  };
  signal('SIGSTOP');
  return {
    [Symbol.dispose]: () => {
      signal('SIGCONT');
    },
  };
}

test('connections of the rsync daemon that stand still are given up, and their batches are sent again', async () => {
  const clone = await start('rsync');
  await clone.copied(0.2);
  const isOurs = (args: string) => args.startsWith('rsync --daemon') && args.includes(clone.name());
  const daemons = (await listProcesses()).filter(({ args }) => isOurs(args));
  const pids = new Set(daemons.map(({ pid }) => pid));
  const children = daemons.filter(({ parentPid }) => pids.has(parentPid)).map(({ pid }) => pid);
  expect(children.length).toBeGreaterThan(0);
  using _ = stopped(children);

  await clone.said(/a batch broke off and is sent again/);
  const ended = await clone.ended;

  expect(ended.error).toBeUndefined();
  expect(ended.messages.join('\n')).not.toMatch('attempt 2');
});

test('a WAL sender that stands still is replaced, and the clone does not notice', async () => {
  const clone = await start('sender');
  await clone.copied(0.05);
  const [sender] = await source.primary.query<{ pid: number }>(
    "SELECT pid FROM pg_stat_replication WHERE application_name ^@ 'pgcloned'",
  );
  using _ = stopped([sender?.pid ?? 0]);
  // Something that it should have sent.
  await source.primary.query("SELECT pg_logical_emit_message(false, 'testbed', 'x')");
  await source.primary.query('CHECKPOINT');

  const ended = await clone.ended;

  expect(ended.error).toBeUndefined();
  expect(ended.messages.join('\n')).not.toMatch('attempt 2');
});

test('a checkpoint is waited for beyond any limit, and the clone says so', async () => {
  const [checkpointer] = await source.primary.query<{ pid: number }>(
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'",
  );
  const stop = stopped([checkpointer?.pid ?? 0]);
  using _ = stop;
  const clone = await start('checkpoint');
  await clone.said(/^the clone waits for the checkpoint on the source/);
  stop[Symbol.dispose]();
  const ended = await clone.ended;

  expect(ended.error).toBeUndefined();
  expect(ended.messages.join('\n')).not.toMatch('attempt 2');
});
