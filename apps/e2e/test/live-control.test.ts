/** A clone whose rate and workers are changed while it copies, through the API and the command line. */
import { setTimeout as delay } from 'node:timers/promises';
import {
  compareTables,
  createScattered,
  listProcesses,
  otherHost,
  runAsPartsUser,
  runsAsRoot,
  startCluster,
  startRedis,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Product, startProduct } from './product.ts';

const owned = new AsyncDisposableStack();
let product: Product;

beforeAll(async () => {
  product = owned.use(await startProduct());
  await product.source.primary.query(
    'CREATE TABLE filler AS SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 10000) i',
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

test.each(['rsyncd', 'ssh'])(
  'a crawling clone (%s) is changed, stays so over a restart of its worker, and is a copy once it is let go',
  async (transport) => {
    // Ten minutes: whatever happens, it does not end before it is told to.
    const crawling = { transport, workers: 1, maxRate: 50_000 };
    const { id } = await product.create(transport, { transfer: crawling });
    await product.until(
      id,
      ({ phase, progress }) => phase === 'copy-files' && progress.bytesTotal > 0,
    );

    const answer = await product.pgcloned.request('PATCH', `/v1/clones/${id}`, {
      transfer: { workers: 3, maxRate: 200_000 },
    });
    const grown = await product.until(id, ({ progress }) => progress.workers.length === 3);
    await product.pgcloned.stop('SIGTERM');
    await product.pgcloned.start();
    const again = await product.until(
      id,
      ({ attempt, progress }) => attempt > 1 && progress.workers.length > 0,
    );
    const said = await product.cli(['clone', 'change', id, '--max-rate', 'none', '-j', '4']);
    const clone = await product.ended(id);
    const late = await product.cli(['clone', 'change', id, '--workers', 'auto']);

    expect(answer).toMatchObject({ status: 200, body: { id, state: 'running' } });
    for (const { spec } of [answer.body, grown, again])
      expect(spec.transfer).toMatchObject({ workers: 3, maxRate: 200_000, transport });
    expect(again.progress.workers).toHaveLength(3);
    expect(said.stdout.toString()).toMatch(/ is \w+: workers 4, max rate none\n$/);
    expect(clone).toMatchObject({
      ...{ state: 'succeeded', error: null, leftovers: [] },
      spec: { transfer: { workers: 4, maxRate: null } },
    });
    expect(clone.progress.workers).toHaveLength(4);
    expect(product.logged(id)).not.toContain('a batch broke off and is sent again');
    // What was on its way when somebody stopped it, of each.
    expect(clone.result?.wireBytes).toBeLessThan((clone.result?.bytes ?? 0) * 1.4);
    expect(late).toMatchObject({ status: 5, stderr: expect.stringContaining('has ended') });
    await product.expectNothingLeft(clone);
    await using standby = await startCluster(clone.spec.target.dataDirectory);
    await waitForReplay(product.source.primary, standby);
    expect(await compareTables(product.source.primary, standby)).toEqual([]);
  },
);

/** What is promised, and by how much whoever measures it may be wrong. */
const HOLDS_WITHIN_MS = 2_000;
const TOLERANCE = 1.1;
const LINE_MEGABITS_PER_SECOND = 400;
/** One file is begun and not complete whenever something changes. */
const TABLES_MB = [120, 30, 30, 30];

/** How many bytes per second arrive in the files of a directory, on the average of some time. */
async function rateInto(directory: string, ms: number): Promise<number> {
  const look = async () => {
    const { stdout } = await runAsPartsUser(['du', '--bytes', '--summarize', directory]);
    return { bytes: Number.parseInt(stdout.toString(), 10), atMs: performance.now() };
  };
  const before = await look();
  await delay(ms);
  const after = await look();
  return ((after.bytes - before.bytes) / (after.atMs - before.atMs)) * 1000;
}

describe.skipIf(!runsAsRoot)('over a slow line, which takes root to lay,', () => {
  test('rate and workers hold two seconds after the answer, and so does the first rate of a clone that had none', async () => {
    await using host = await otherHost({ megabitsPerSecond: LINE_MEGABITS_PER_SECOND });
    await using redis = await startRedis();
    await using far = await startProduct({
      ...{ from: host, parts: ['worker', 'api'], workerOn: host.on },
      configuration: { redis: redis.url },
    });
    await createScattered(far.source.primary, TABLES_MB);

    const changeMuch = async (transport: string) => {
      const { id } = await far.create(transport, { transfer: { transport, workers: 2 } });
      const directory = far.at(transport, 'main');
      const change = async (transfer: { workers: number; maxRate: number | null }) => {
        const answer = await far.pgcloned.request('PATCH', `/v1/clones/${id}`, { transfer });
        expect(answer.status).toBe(200);
      };
      const expectHeld = async ({ workers, maxRate }: { workers: number; maxRate: number }) => {
        await change({ workers, maxRate });
        await delay(HOLDS_WITHIN_MS);
        const rsyncs = (await listProcesses()).filter(
          ({ args }) => args.startsWith('rsync ') && args.endsWith(` ${directory}/`),
        );
        // Of each a generator and a receiver.
        expect(rsyncs.length).toBeLessThanOrEqual(2 * workers);
        expect(await rateInto(directory, 1_000)).toBeLessThan(maxRate * TOLERANCE);
      };
      /** Waited for, since a busy machine may be the slower of the two. */
      const untilFaster = async (than: number) => {
        while ((await rateInto(directory, 500)) < than * TOLERANCE)
          await far.until(id, ({ phase }) => phase === 'copy-files');
      };

      await far.until(id, ({ progress }) => progress.bytesDone > 10_000_000);
      await expectHeld({ workers: 2, maxRate: 8_000_000 });
      await expectHeld({ workers: 4, maxRate: 16_000_000 });
      await untilFaster(8_000_000);
      await far.until(id, ({ progress }) => progress.workers.length === 4);
      await expectHeld({ workers: 1, maxRate: 6_000_000 });
      await change({ workers: 3, maxRate: null });
      await untilFaster(6_000_000);
      const clone = await far.ended(id);

      expect(clone).toMatchObject({ state: 'succeeded', error: null, leftovers: [] });
      expect(far.logged(id)).not.toContain('a batch broke off and is sent again');
      await far.expectNothingLeft(clone);
    };
    await Promise.all(['rsyncd', 'ssh'].map(changeMuch));
  });
});
