/**
 * A clone that died in the middle is taken up by the next one into the same directory: what is still the same on the
 * source is not sent again, everything else is, and nothing stale survives (R6.9, R6.10).
 */
import { chmod, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  checkChecksums,
  compareTables,
  findDamage,
  freePort,
  installAmcheck,
  makeDirectory,
  type PostgresServer,
  partsEnvironment,
  type Source,
  scratchDirectory,
  startSource,
  startWriteLoad,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runClone, startClone } from './run-clone.ts';

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(
    await startSource({ settings: { max_wal_size: '64MB' }, initdbArgs: ['--data-checksums'] }),
  );
  directory = owned.use(await scratchDirectory()).path;
  await installAmcheck(source.primary);
  // Of many files most are complete at any moment, and what was written before the checkpoint stays as it is.
  for (let table = 1; table <= 30; table++)
    await source.primary.query(
      `CREATE TABLE cold_${String(table)} AS SELECT i, md5(i::text) FROM generate_series(1, 30000) i`,
    );
  await source.primary.query('CHECKPOINT');
});

afterAll(async () => {
  await owned.disposeAsync();
});

async function expectEqual(primary: PostgresServer, standby: PostgresServer): Promise<void> {
  await waitForReplay(primary, standby);
  expect(await compareTables(primary, standby)).toEqual([]);
  expect(await findDamage(standby)).toBe('');
  await standby.stop('fast');
  expect(await checkChecksums(standby)).toBeGreaterThan(0);
}

test('what was copied before a kill is kept as far as it is unchanged, and the clone is equal and whole', async () => {
  const dataDirectory = join(directory, 'killed', 'main');
  await using load = await startWriteLoad(source.primary);
  const spec = { target: { dataDirectory }, transfer: { maxRate: 15_000_000, workers: 2 } };
  const killed = await startClone(source, spec);
  await killed.copied(0.7);
  process.kill(killed.process.pid, 'SIGKILL');
  await killed.ended;
  // Whatever lies there without being on the source must not survive: ghost rows, a foreign signal, a stale link.
  const base = join(dataDirectory, 'base');
  const [database = ''] = await readdir(base);
  await writeFile(join(base, database, '1259.1'), Buffer.alloc(8192, 1));
  await writeFile(join(dataDirectory, 'recovery.signal'), '');

  const { status, result, stderr } = await runClone(source, {
    target: { dataDirectory },
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });

  expect(stderr).toBe('');
  expect(status).toBe(0);
  expect(result.result.keptBytes).toBeGreaterThan(10_000_000);
  expect(result.result.wireBytes).toBeLessThan(
    result.result.bytes - result.result.keptBytes + 5_000_000,
  );
  expect(result.result.verification).toMatchObject({ pages: 'passed' });
  await using standby = await adoptServer(dataDirectory);
  await load.stop();
  await expectEqual(source.primary, standby);
});

test('a disk that loses writes ends the clone, although the kernel tells of it once, and nothing of it is kept', async () => {
  const dataDirectory = join(directory, 'unsynced', 'main');
  const bin = join(directory, 'bin');
  await makeDirectory(bin);
  // As syncfs(2) does it: the first one after the loss fails, the next one knows of nothing.
  await writePartsFile(
    join(bin, 'sync'),
    `#!/bin/sh\nif mkdir ${bin}/told; then echo 'Input/output error' >&2; exit 1; fi\nexec /usr/bin/sync "$@"\n`,
  );
  await chmod(join(bin, 'sync'), 0o755);

  const { status, error } = await runClone(
    source,
    { target: { dataDirectory }, transfer: { maxRate: 15_000_000, workers: 2 } },
    { env: { PATH: `${bin}:${partsEnvironment.PATH ?? ''}` } },
  );

  expect(error).toMatchObject({
    code: 'TRANSFER_FAILED',
    message: expect.stringContaining('could not be brought to the disk'),
    hint: expect.stringContaining('kernel log'),
    facts: { stderr: 'Input/output error' },
  });
  expect(status).not.toBe(0);
  const again = await runClone(source, { target: { dataDirectory } });
  expect(again.status).toBe(0);
  expect(again.result.result.keptBytes).toBe(0);
});

test('what was copied is kept by the next clone also if the one before died while it was published', async () => {
  const dataDirectory = join(directory, 'publishing', 'main');
  const bin = join(directory, 'publishing bin');
  await makeDirectory(bin);
  // The sync that follows the label is the one of `publish`.
  await writePartsFile(
    join(bin, 'sync'),
    `#!/bin/sh\nif [ -e '${dataDirectory}/backup_label' ]; then kill -9 $PPID; exit 1; fi\nexec /usr/bin/sync "$@"\n`,
  );
  await chmod(join(bin, 'sync'), 0o755);
  const killed = await runClone(
    source,
    { target: { dataDirectory } },
    { env: { PATH: `${bin}:${partsEnvironment.PATH ?? ''}` } },
  );
  expect(killed.status).toBeNull();

  const { status, result } = await runClone(source, { target: { dataDirectory } });

  expect(status).toBe(0);
  expect(result.result.keptBytes).toBeGreaterThan(10_000_000);
});
