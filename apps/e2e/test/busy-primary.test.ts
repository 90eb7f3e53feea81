/**
 * Clones of a primary that is written to in every way that moves files, with so little WAL kept (`max_wal_size = 64MB`)
 * that checkpoints and recycling happen all the time: what arrives must be equal, whole and streaming.
 */

import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  checkChecksums,
  compareTables,
  findDamage,
  freePort,
  installAmcheck,
  leftBehind,
  makeDirectory,
  otherHost,
  type PostgresServer,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startSource,
  startWriteLoad,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runClone } from './run-clone.ts';

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(
    await startSource({
      settings: { max_wal_size: '64MB', min_wal_size: '32MB', checkpoint_timeout: '30s' },
      initdbArgs: ['--data-checksums'],
    }),
  );
  directory = owned.use(await scratchDirectory()).path;
  await installAmcheck(source.primary);
  await source.primary.createTablespace('fast', join(directory, 'source fast'));
  await source.primary.createTablespace('slow', join(directory, 'source slow'));
});

afterAll(async () => {
  await owned.disposeAsync();
});

/** Stops the load, lets the standby come to the same point, and compares everything there is. */
async function expectEqual(primary: PostgresServer, standby: PostgresServer): Promise<void> {
  await waitForReplay(primary, standby);
  expect(await compareTables(primary, standby)).toEqual([]);
  expect(await findDamage(standby)).toBe('');
  await standby.stop('fast');
  expect(await checkChecksums(standby)).toBeGreaterThan(0);
}

test.each([1, 8])(
  'a clone by %i workers, with tablespaces and blanks in every path, is equal, whole and streams',
  async (workers) => {
    const database = `by_${String(workers)}`;
    const home = join(directory, `by ${String(workers)}`);
    await source.primary.query(`CREATE DATABASE ${database}`);
    await using load = await startWriteLoad(source.primary, {
      database,
      tablespaces: ['fast', 'slow'],
    });

    const { status, result, stderr, name } = await runClone(source, {
      target: {
        dataDirectory: join(home, 'main'),
        tablespaces: {
          [join(directory, 'source fast')]: join(home, 'fast'),
          [join(directory, 'source slow')]: join(home, 'slow'),
        },
      },
      transfer: { workers },
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    });

    expect(stderr).toBe('');
    expect(status).toBe(0);
    expect(result.leftovers).toEqual([]);
    await using standby = await adoptServer(join(home, 'main'));
    await load.stop();
    expect(
      await leftBehind({
        names: [name, directory],
        servers: [source.primary],
        directories: [home],
        pidsKept: [standby.pid, source.primary.pid],
      }),
    ).toEqual([]);
    await expectEqual(source.primary, standby);
  },
);

test.skipIf(!runsAsRoot)(
  'on another host, which takes root to imitate, a tablespace that is not mapped keeps its path',
  async () => {
    await using host = await otherHost();
    await using far = await startSource({ settings: { max_wal_size: '64MB' } }, host);
    const home = join(directory, 'far');
    await makeDirectory(home);
    await makeDirectory(join(home, 'slow of the other host'));
    await installAmcheck(far.primary);
    await far.primary.createTablespace('fast', join(directory, 'far fast'));
    await far.primary.createTablespace('slow', join(directory, 'far slow'));
    await using load = await startWriteLoad(far.primary, { tablespaces: ['fast', 'slow'] });
    const mount = { path: join(directory, 'far slow'), by: join(home, 'slow of the other host') };

    const { status, stderr, result } = await runClone(
      far,
      {
        target: {
          dataDirectory: join(home, 'main'),
          tablespaces: { [join(directory, 'far fast')]: join(home, 'fast') },
        },
        replica: { start: true, waitFor: 'streaming', port: await freePort() },
      },
      { on: (argv) => host.on(argv, mount) },
    );

    expect(stderr).toBe('');
    expect(status).toBe(0);
    expect(result.result.warnings.join()).toMatch(/listen_addresses of the source/);
    await using standby = await adoptServer(join(home, 'main'));
    await load.stop();
    await waitForReplay(far.primary, standby);
    expect(await compareTables(far.primary, standby)).toEqual([]);
    expect(await findDamage(standby)).toBe('');
    expect(await readdir(mount.by)).toContainEqual(
      expect.stringMatching(`^PG_${String(far.primary.major)}_`),
    );
  },
);
