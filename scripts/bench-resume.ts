/**
 * What an interruption costs: how much crosses a cable again, beside a clone that nothing befell. Needs root, for the cable.
 *
 * The bytes are those that the cable has carried, so that no figure rests on what the clone says of itself.
 * `apps/e2e/test/resume-figures.test.ts` promises the same on a small cluster.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  createScattered,
  freePort,
  haltAt,
  killVictim,
  otherHost,
  startSource,
  type VICTIMS,
  writeScattered,
} from '@pgcloned/testbed';
import { type Run, resultOf, startRun } from './clone-on-host.ts';

/** Before the clone that was killed is taken up again. */
const WRITTEN_SHARE = 0.02;
/** Before the standby is brought up to date. */
const MISSED_SHARE = 0.05;
/** No clone of this size is as fast; a limit is what halts all that a clone receives. */
const MAX_RATE = 500_000_000;
/** The size of the smallest batch of a worker, while more than that is left. */
const BATCH_BYTES = 64 * 1024 ** 2;
const SMALL_TABLE_MB = 50;

interface Carried {
  readonly bytes: number;
  readonly durationMs: number;
}

export interface ResumeFigures {
  /** What the cable carried for a whole clone. */
  readonly full: Carried;
  /** For a standby that had missed 5 % of its pages. */
  readonly resynced: Carried;
  /** For what was left of a clone that was killed at 90 %, with 2 % of the pages written since. */
  readonly resumed: Carried;
  /** What both of its tries moved more than a whole clone does, as a share of that. */
  readonly shareAgain: number;
  /** More than for a whole clone, in batches per worker that lost its rsync, while the session of the backup lived on. */
  readonly batchesAgain: { readonly daemonKilled: number; readonly rsyncKilled: number };
}

export async function measureResume(o: {
  readonly directory: string;
  readonly gigabytes: number;
  readonly workers: number;
}): Promise<ResumeFigures> {
  await using host = await otherHost();
  await using source = await startSource(
    {
      // A segment of WAL is sent to its end, and one of 16 MB would count as much as what is measured.
      initdbArgs: ['--wal-segsize=1'],
      settings: { fsync: 'on', max_wal_size: '8GB', autovacuum: 'off', shared_buffers: '128MB' },
    },
    host,
  );
  const megabytes = o.gigabytes * 1000;
  const smallTables = Math.ceil(megabytes / 2 / SMALL_TABLE_MB);
  await createScattered(source.primary, [
    megabytes / 2,
    ...Array.from({ length: smallTables }, () => SMALL_TABLE_MB),
  ]);

  const start = async (home: string, { target, ...change }: Change = {}) =>
    await startRun(host, `${home}.json`, {
      source: source.configuration,
      transfer: { workers: o.workers },
      ...change,
      target: { dataDirectory: join(home, 'main'), ...target },
    });
  const carriedFor = async (act: () => Promise<Run>) => {
    const before = await host.carriedBytes();
    const { bytes, durationMs } = resultOf(await (await act()).ended);
    const carried = { bytes: (await host.carriedBytes()) - before, durationMs };
    return { carried, clusterBytes: bytes };
  };
  const haltedAt = async (home: string, bytes: number) =>
    await haltAt(await start(home, { transfer: { workers: o.workers, maxRate: MAX_RATE } }), {
      home,
      bytes,
    });

  const standby = join(o.directory, 'standby');
  const replica = { start: true, waitFor: 'streaming', port: await freePort() };
  const { carried: full, clusterBytes } = await carriedFor(
    async () => await start(standby, { replica }),
  );
  await (await adoptServer(join(standby, 'main'))).stop('fast');
  await writeScattered(source.primary, MISSED_SHARE);
  const { carried: resynced } = await carriedFor(
    async () => await start(standby, { target: { ifExists: 'resync' } }),
  );
  await rm(standby, { recursive: true });

  const batchesAgain = async (victim: keyof typeof VICTIMS, workersHit: number) => {
    const home = join(o.directory, 'interrupted');
    const { carried } = await carriedFor(async () => {
      using halted = await haltedAt(home, 0.5 * clusterBytes);
      await killVictim(halted.clone, source, victim);
      return halted.clone;
    });
    await rm(home, { recursive: true });
    return (carried.bytes - full.bytes) / (workersHit * BATCH_BYTES);
  };
  const daemonKilled = await batchesAgain('the rsync daemon', o.workers);
  const rsyncKilled = await batchesAgain('the first process of an rsync', 1);

  const home = join(o.directory, 'killed');
  const carriedBefore = await host.carriedBytes();
  {
    using halted = await haltedAt(home, 0.9 * clusterBytes);
    process.kill(halted.clone.process.pid, 'SIGKILL');
    await halted.clone.ended;
  }
  await writeScattered(source.primary, WRITTEN_SHARE);
  const { carried: resumed } = await carriedFor(async () => await start(home));
  const killedBytes = (await host.carriedBytes()) - carriedBefore;
  await rm(home, { recursive: true });
  const shareAgain = (killedBytes - full.bytes) / full.bytes;
  return { full, resynced, resumed, shareAgain, batchesAgain: { daemonKilled, rsyncKilled } };
}

interface Change {
  readonly target?: object;
  readonly [section: string]: unknown;
}
