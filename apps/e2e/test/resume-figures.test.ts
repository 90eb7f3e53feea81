/**
 * How much of a clone crosses the wire twice because of an interruption: 12 % at most if the backup was lost at 90 % and 2 % of
 * the pages were written since, and next to nothing if the backup lives on.
 *
 * Another network clones over a cable whose bytes are counted, so that no figure rests on what the clone says of itself.
 * `npm run bench -- --only resume` measures the same on a cluster of gigabytes.
 */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import {
  adoptServer,
  compareTables,
  createScattered,
  freePort,
  type HaltedClone,
  haltAt,
  killVictim,
  type OtherHost,
  otherHost,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startSource,
  VICTIMS,
  waitForReplay,
  writeScattered,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Running, startClone } from './run-clone.ts';

/** One worker is in the first of them while the other copies all the rest, so that it is begun and not complete. */
const TABLES_MB = [80, 12, 10, 8, 6, 4, 2, 1, 0.5, 0.2, 0.1];
const WRITTEN_SHARE = 0.02;
/** Here when the clone is interrupted; the rest has to come in any case. */
const HERE_SHARE = 0.9;
const AGAIN_SHARE_MAX = 0.12;
const MOVED_SHARE_MAX = 1 - HERE_SHARE + AGAIN_SHARE_MAX;
/** What was sent and not yet written, with these buffers: 1 % is seen. A batch is half of the cluster. */
const UNDER_WAY_SHARE_MAX = 0.03;
const BUFFERS = '4096 65536 131072';
const SLOW = { maxRate: 40_000_000, workers: 2 };

const owned = new AsyncDisposableStack();
let host: OtherHost;
let source: Source;
let directory = '';
/** Of the files of a clone. */
let bytesTotal = 0;
/** What the cable carries beside them: the list, headers, WAL. */
let bytesBeside = 0;

/** Of each try of a test: where an earlier one has ended there would be nothing to copy. */
const newHome = () => join(directory, randomUUID());

const start = async (home: string, change: object = {}) =>
  await startClone(
    source,
    { target: { dataDirectory: join(home, 'main') }, ...change },
    { on: (argv) => host.on(argv) },
  );

async function expectSuccess({ ended }: Running): Promise<void> {
  const { status, stderr } = await ended;
  expect(stderr).toBe('');
  expect(status).toBe(0);
}

/** Starts a clone and halts it, with all that it receives, once this share of its files is here. */
async function haltedAt(share: number, home = newHome()): Promise<HaltedClone<Running>> {
  const clone = await start(home, { transfer: SLOW });
  return await haltAt(clone, { home, bytes: share * bytesTotal });
}

describe.skipIf(!runsAsRoot)('over a cable, which takes root to lay,', () => {
  beforeAll(async () => {
    host = owned.use(await otherHost());
    for (const direction of ['rmem', 'wmem']) {
      const [file = '', ...args] = host.on(['tee', `/proc/sys/net/ipv4/tcp_${direction}`]);
      await runProcess(
        { file, args, env: {}, input: BUFFERS },
        { signal: AbortSignal.timeout(60_000) },
      );
    }
    directory = owned.use(await scratchDirectory()).path;
    source = owned.use(
      // A segment of WAL is sent to its end, and one of 16 MB would be a tenth of the cluster.
      await startSource({ initdbArgs: ['--wal-segsize=1'], settings: { autovacuum: 'off' } }, host),
    );
    await createScattered(source.primary, TABLES_MB);
    const before = await host.carriedBytes();
    const clone = await start(newHome());
    await expectSuccess(clone);
    bytesTotal = (await clone.ended).result.result.bytes;
    bytesBeside = (await host.carriedBytes()) - before - bytesTotal;
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  test('kill -9 at 90 %, and 2 % of the pages written: the next clone moves 12 % of it twice at most, and is equal', async () => {
    const home = newHome();
    using halted = await haltedAt(HERE_SHARE, home);
    process.kill(halted.clone.process.pid, 'SIGKILL');
    await halted.clone.ended;
    await writeScattered(source.primary, WRITTEN_SHARE);
    const before = await host.carriedBytes();

    const replica = { start: true, waitFor: 'streaming', port: await freePort() };
    const clone = await start(home, { replica });
    await expectSuccess(clone);

    const carried = (await host.carriedBytes()) - before - bytesBeside;
    const { wireBytes } = (await clone.ended).result.result;
    expect(carried).toBeLessThanOrEqual(MOVED_SHARE_MAX * bytesTotal);
    expect(wireBytes).toBeLessThanOrEqual(MOVED_SHARE_MAX * bytesTotal);
    await using standby = await adoptServer(join(home, 'main'));
    await waitForReplay(source.primary, standby);
    expect(await compareTables(source.primary, standby)).toEqual([]);
  });

  test('a restart of the primary at 90 %, and 2 % of the pages written: the next attempt moves 12 % of it twice at most', async () => {
    using halted = await haltedAt(HERE_SHARE);
    await writeScattered(source.primary, WRITTEN_SHARE);
    await source.primary.stop('fast');
    await source.primary.start();
    const before = await host.carriedBytes();

    halted.goOn();
    await expectSuccess(halted.clone);

    const carried = (await host.carriedBytes()) - before - bytesBeside;
    const { messages } = await halted.clone.ended;
    expect(messages.join()).toMatch('attempt 2');
    expect(carried).toBeLessThanOrEqual(MOVED_SHARE_MAX * bytesTotal);
  });

  test.each(Object.keys(VICTIMS) as (keyof typeof VICTIMS)[])(
    '%s that is killed while the backup lives on costs what was under way',
    async (victim) => {
      const before = await host.carriedBytes();
      using halted = await haltedAt(0.5);
      await killVictim(halted.clone, source, victim);
      halted.goOn();
      await expectSuccess(halted.clone);

      const again = (await host.carriedBytes()) - before - bytesBeside - bytesTotal;
      const { messages } = await halted.clone.ended;
      expect(messages.join()).not.toMatch('attempt 2');
      expect(again).toBeLessThan(UNDER_WAY_SHARE_MAX * bytesTotal);
    },
  );
});
