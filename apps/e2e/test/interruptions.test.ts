/**
 * A clone that is stopped, killed or robbed of a part in the middle: the source must be as before, the target
 * unstartable, and the next clone into it must work.
 *
 * The copy is slowed down by a rate limit, so that there is a middle; the other phases last milliseconds, and a signal
 * that is sent when one begins may meet the next one.
 */
import { existsSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { PHASES } from '@pgcloned/contract';
import {
  descendantsOf,
  leftBehind,
  listProcesses,
  runAsPartsUser,
  type Source,
  scratchDirectory,
  startSource,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Ended, type Running, runClone, startClone } from './run-clone.ts';

/** A cluster of 22 MB takes some seconds at this rate. */
const SLOW = { maxRate: 6_000_000, workers: 2 };

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

const specOf = (name: string, transfer: object = {}) => ({
  target: { dataDirectory: join(directory, name, 'main') },
  transfer,
});

async function expectNothingLeft(
  { name }: Ended,
  { home, withinMs = 10_000 }: { readonly home: string; readonly withinMs?: number },
): Promise<void> {
  const options = {
    servers: [source.primary],
    directories: [directory, home].filter(existsSync),
    withinMs,
  };
  expect(await leftBehind({ names: [name], ...options })).toEqual([]);
}

async function expectUnstartable(dataDirectory: string): Promise<void> {
  if (!existsSync(dataDirectory)) return;
  const pgCtl = join(source.primary.binDirectory, 'pg_ctl');
  const { status } = await runAsPartsUser([pgCtl, 'start', '--no-wait', '-D', dataDirectory], {
    accept: 'any',
  });
  expect(existsSync(join(dataDirectory, 'global/pg_control'))).toBe(false);
  expect((await listProcesses()).map(({ args }) => args).join('\n')).not.toContain(dataDirectory);
  expect(status).not.toBeNull();
}

/** The next clone into the same place is whole, so what was there was no obstacle. */
async function expectNextCloneWorks(name: string): Promise<void> {
  const { status, stderr } = await runClone(source, specOf(name));
  expect(stderr).toBe('');
  expect(status).toBe(0);
  expect(existsSync(join(directory, name, 'main/global/pg_control'))).toBe(true);
  // Of what served to take up an unfinished copy only the marker stays; the others are for a standby beside its source.
  const ours = (await readdir(join(directory, name, 'main'))).filter((one) => /pgcloned/.test(one));
  expect(ours.toSorted()).toEqual([
    '.pgcloned-marker',
    'pgcloned.postgresql.auto.conf.original',
    'pgcloned.source',
  ]);
}

describe.each(PHASES)('in phase %s', (phase) => {
  const slow = phase === 'copy-files' ? SLOW : {};

  test('SIGINT cancels: nothing is left on either side, and the next clone works', async () => {
    const name = `cancelled ${phase}`;
    const home = join(directory, name);
    const clone = await startClone(source, specOf(name, slow));
    await clone.reached(phase);

    process.kill(clone.process.pid, 'SIGINT');
    const ended = await clone.ended;

    // The signal may come after the point of no return; then the clone is complete.
    if (ended.status === 0) expect(phase).toMatch(/publish|start-replica/);
    else {
      expect(ended).toMatchObject({ status: 130, error: { code: 'CANCELLED' } });
      if (!isPublished(name)) expect(existsSync(join(home, 'main'))).toBe(false);
    }
    await expectNothingLeft(ended, { home });
    if (!isPublished(name)) await expectNextCloneWorks(name);
  });

  test('kill -9 leaves nothing that can be started or stays, and the next clone works', async () => {
    const name = `killed ${phase}`;
    const home = join(directory, name);
    const clone = await startClone(source, specOf(name, slow));
    await clone.reached(phase);

    process.kill(clone.process.pid, 'SIGKILL');
    const ended = await clone.ended;

    expect(ended.status).not.toBe(0);
    if (!isPublished(name)) {
      await expectUnstartable(join(home, 'main'));
      await expectNextCloneWorks(name);
    }
    // The lease of the rsync daemon lasts 15 s at most.
    await expectNothingLeft(ended, { home, withinMs: 30_000 });
  });
});

function isPublished(name: string): boolean {
  return existsSync(join(directory, name, 'main/global/pg_control'));
}

describe('while files are copied', () => {
  /** Starts a slow clone, harms it, and tells how it ended. */
  async function harm(
    name: string,
    harmful: (clone: Running) => Promise<void>,
  ): Promise<{ readonly ended: Ended; readonly home: string }> {
    const clone = await startClone(source, specOf(name, SLOW));
    await clone.reached('copy-files');
    await findChild(clone, /^rsync .*--files-from/);
    await harmful(clone);
    const ended = await clone.ended;
    const home = join(directory, name);
    await expectNothingLeft(ended, { home });
    if (ended.status !== 0) {
      await expectUnstartable(join(home, 'main'));
      await expectNextCloneWorks(name);
    }
    return { ended, home };
  }

  /** The pid of the clone's child of which this is the command; waits until there is one. */
  async function findChild(clone: Running, command: RegExp): Promise<number> {
    let isRunning = true;
    void clone.ended.then(() => {
      isRunning = false;
    });
    while (isRunning) {
      const found = descendantsOf(clone.process.pid, await listProcesses()).find(({ args }) =>
        command.test(args),
      );
      if (found !== undefined) return found.pid;
    }
    throw new Error('the clone ended before');
  }

  const terminate = async (condition: string) => {
    await source.primary.query(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE ${condition}`,
    );
  };

  test('an rsync that is killed costs one batch, and the clone succeeds', async () => {
    const { ended } = await harm('rsync', async (clone) => {
      process.kill(await findChild(clone, /^rsync .*--files-from/), 'SIGKILL');
    });

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
    expect(ended.messages.join()).toMatch('sent again');
  });

  test('a pg_receivewal that is killed is started again, and the clone succeeds', async () => {
    const { ended } = await harm('receiver', async (clone) => {
      process.kill(await findChild(clone, /pg_receivewal/), 'SIGKILL');
    });

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
  });

  test('the loss of the backup session costs an attempt, and the clone succeeds', async () => {
    const { ended } = await harm('session', async () => {
      await terminate(
        `application_name LIKE 'pgcloned%' AND query NOT LIKE '%slot%' AND backend_type = 'client backend'`,
      );
    });

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
    expect(ended.messages.join()).toMatch('attempt 2');
  });

  test('a pin that is lost is made again, and the clone succeeds without a warning', async () => {
    const { ended } = await harm('pin', async (clone) => {
      let isRunning = true;
      void clone.ended.then(() => {
        isRunning = false;
      });
      const pinnedBy = async () => {
        const [slot] = await source.primary.query<{ pid: number }>(
          'SELECT active_pid AS pid FROM pg_replication_slots WHERE active_pid IS NOT NULL',
        );
        return slot?.pid;
      };
      const first = await pinnedBy();
      expect(first).toBeDefined();
      await terminate(`pid = ${String(first)}`);
      for (let now = first; now === undefined || now === first; now = await pinnedBy())
        if (!isRunning) throw new Error('the clone ended without a pin');
    });

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
    expect(ended.result.result.warnings.join()).not.toMatch(/pin|slot/);
  });

  test('the loss of the SSH connection costs no attempt: the backup lives on, and the clone succeeds', async () => {
    const { ended } = await harm('ssh', async (clone) => {
      await source.sshd.kill();
      await clone.said(/the way to the files was lost/);
      // Longer than the first pause.
      await delay(1_000);
      await source.sshd.start();
    });

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
    expect(ended.messages.join()).not.toMatch('attempt 2');
  });

  test('an rsync daemon that is killed is started again, and the clone succeeds', async () => {
    const { ended } = await harm('daemon', async (clone) => {
      const daemon = (await listProcesses()).find(
        ({ args }) => args.startsWith('rsync --daemon') && args.includes(clone.name()),
      );
      process.kill(daemon?.pid ?? 0, 'SIGKILL');
    });

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
  });

  test('a restart of the primary costs an attempt, and the clone succeeds', async () => {
    const { ended } = await harm('restart', async () => {
      await source.primary.stop('immediate');
      await source.primary.start();
    });

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
    expect(ended.messages.join()).toMatch('attempt 2');
  });
});
