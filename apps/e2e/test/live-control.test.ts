/** A clone whose rate and workers are changed while it copies, through the API and the command line. */
import { compareTables, startCluster, waitForReplay } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
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
