/**
 * How the files travel: compressed, compared by content, and no faster than allowed. Whatever the way, what arrives is
 * the same.
 */
import { join } from 'node:path';
import {
  checkChecksums,
  compareTables,
  leftBehind,
  runAsPartsUser,
  type Source,
  scratchDirectory,
  startCluster,
  startSource,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Ended, runClone } from './run-clone.ts';

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(await startSource());
  directory = owned.use(await scratchDirectory()).path;
  await source.primary.query(
    "CREATE TABLE rows AS SELECT i AS id, repeat('compressible', 20) AS filler FROM generate_series(1, 20000) AS i",
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

async function cloneWith(
  name: string,
  transfer: Readonly<Record<string, unknown>>,
): Promise<Ended> {
  const ended = await runClone(source, { target: { dataDirectory: at(name, 'main') }, transfer });
  expect(ended.error).toBeUndefined();
  return ended;
}

/** Equal rows and sound blocks; and nothing left of the clone. */
async function expectSound(name: string, ended: Ended): Promise<void> {
  {
    await using standby = await startCluster(at(name, 'main'), {
      settings: { shared_buffers: '16MB' },
    });
    await waitForReplay(source.primary, standby);
    expect(await compareTables(source.primary, standby)).toEqual([]);
    await standby.stop('fast');
    expect(await checkChecksums(standby)).toBeGreaterThan(0);
  }
  expect(
    await leftBehind({
      names: [ended.name],
      servers: [source.primary],
      directories: [at(name)],
    }),
  ).toEqual([]);
}

test.each(['lz4', 'zstd'])(
  'compression by %s sends less than half, and the same arrives',
  async (compression) => {
    const ended = await cloneWith(compression, { compression });

    const { bytes, wireBytes } = ended.result.result;
    expect(bytes).toBeGreaterThan(20_000_000);
    expect(wireBytes).toBeLessThan(bytes / 2);
    await expectSound(compression, ended);
  },
);

test('with little to copy auto picks lz4 and says so, and the same arrives', async () => {
  const ended = await cloneWith('auto', { compression: 'auto' });

  const { bytes, wireBytes, compression } = ended.result.result;
  expect(compression).toBe('lz4');
  expect(wireBytes).toBeLessThan(bytes / 2);
  await expectSound('auto', ended);
});

test('with more to copy auto tries what there is and says what it picks, and the same arrives', async () => {
  const ballast = join(source.primary.dataDirectory, 'base/1/ballast');
  await runAsPartsUser([
    'sh',
    '-c',
    'for i in $(seq 300); do truncate -s 1M "$0.$i"; done',
    ballast,
  ]);

  const ended = await cloneWith('auto with more', { compression: 'auto' });

  await runAsPartsUser(['sh', '-c', 'rm "$0".*', ballast]);
  expect(ended.result.result.bytes).toBeGreaterThan(300_000_000);
  expect(ended.result.result.compression).toBeOneOf(['none', 'lz4', 'zstd']);
  await expectSound('auto with more', ended);
});

test('by default nothing is compressed, and the wire carries hardly more than the files', async () => {
  const ended = await cloneWith('plain', {});

  const { bytes, wireBytes } = ended.result.result;
  expect(wireBytes).toBeGreaterThan(bytes * 0.98);
  expect(wireBytes).toBeLessThan(bytes * 1.05);
});

test('contents are compared where that is asked for, and the same arrives', async () => {
  await expectSound('checksum', await cloneWith('checksum', { checksum: true }));
});

test.each([1, 6])('a rate is that of %i workers together', async (workers) => {
  const maxRate = 12_000_000;
  const name = `rate of ${String(workers)}`;

  const ended = await cloneWith(name, { workers, maxRate });

  // Only that it is not faster is promised: how slow a busy machine is nobody can say.
  const { wireBytes, durationMs } = ended.result.result;
  expect((wireBytes / durationMs) * 1000).toBeLessThan(maxRate * 1.1);
  await expectSound(name, ended);
});
