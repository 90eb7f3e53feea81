/**
 * `ifExists: resync`: an older state of the same cluster becomes a fresh clone in place, and only what differs is sent.
 *
 * Whatever is refused stays as it is, and can be started; a clone that dies in the middle leaves something that cannot, and
 * that the next one takes up.
 */
import { existsSync } from 'node:fs';
import { chmod, readdir, readFile, readlink, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  checkChecksums,
  compareTables,
  findDamage,
  freePort,
  hidePostmaster,
  installAmcheck,
  leftBehind,
  makeDirectory,
  mountFilesystem,
  type PostgresServer,
  runAsPartsUser,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startCluster,
  startPrimary,
  startSource,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Product, startProduct } from './product.ts';
import { type RunSpecText, runClone, startClone } from './run-clone.ts';

const owned = new AsyncDisposableStack();
let product: Product;
let source: Source;
let directory = '';

/** A table of so many pages, with one row each, and room for another version of it: whoever updates a row changes a page. */
async function makePages(primary: PostgresServer, pages: number): Promise<void> {
  await primary.query('CREATE TABLE wide (id int, filler text) WITH (fillfactor = 10)');
  await primary.query('ALTER TABLE wide ALTER filler SET STORAGE PLAIN');
  await primary.query(
    'INSERT INTO wide SELECT i, repeat(md5(i::text), 25) FROM generate_series(1, $1::int) i',
    [pages],
  );
  await primary.query('VACUUM FREEZE');
  await primary.query('CHECKPOINT');
  expect(await primary.query("SELECT pg_relation_size('wide') / 8192 AS pages")).toEqual([
    { pages: String(pages) },
  ]);
}

beforeAll(async () => {
  product = owned.use(await startProduct({ source: { initdbArgs: ['--data-checksums'] } }));
  source = product.source;
  directory = owned.use(await scratchDirectory()).path;
  await installAmcheck(source.primary);
  await source.primary.createTablespace('fast', at('fast'));
  await source.primary.query('CREATE TABLE kept TABLESPACE fast AS SELECT 42 AS id');
  await makePages(source.primary, 3_000);
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

const targetIn = (home: string) => ({
  dataDirectory: at(home, 'main'),
  tablespaces: { [at('fast')]: at(home, 'fast') },
});

const resyncOf = (home: string, more: object = {}): RunSpecText => ({
  target: { ...targetIn(home), ifExists: 'resync', ...more },
});

/** A third of the pages has changed: 8 MB take four seconds. */
const SLOW = { workers: 1, maxRate: 2_000_000 };
const WARNING = 'cannot be started any more';

/** As after a failover back: the copy was promoted, and both sides have written since. */
async function makeDiverged(home: string, more: object = {}): Promise<void> {
  const { error } = await runClone(source, { target: { ...targetIn(home), ...more } });
  expect(error).toBeUndefined();
  await using old = await startCluster(at(home, 'main'));
  await old.query('SELECT pg_promote()');
  await old.query('CREATE TABLE ghost TABLESPACE fast AS SELECT generate_series(1, 5000) AS id');
  await old.query("UPDATE wide SET filler = 'diverged' WHERE id % 3 = 0");
  await old.query('CREATE DATABASE ghosts');
  await old.stop('fast');
}

/** Names, sizes, times and modes of everything below. */
async function treeOf(...names: readonly string[]): Promise<string> {
  const { stdout } = await runAsPartsUser([
    ...['find', at(...names), '-printf', String.raw`%P %y %s %T@ %m %i %l\n`],
  ]);
  return stdout.toString().split('\n').toSorted().join('\n');
}

async function expectSame(standby: PostgresServer): Promise<void> {
  await waitForReplay(source.primary, standby);
  expect(await compareTables(source.primary, standby)).toEqual([]);
  expect(await findDamage(standby)).toBe('');
  await standby.stop('fast');
  expect(await checkChecksums(standby)).toBeGreaterThan(0);
}

/** Starts the clone of the home where nothing has started it, and compares. */
async function expectWhole(home: string): Promise<void> {
  await using clone = await startCluster(at(home, 'main'));
  expect(await clone.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
  expect(await clone.query("SELECT to_regclass('ghost') AS ghost")).toEqual([{ ghost: null }]);
  await expectSame(clone);
}

async function expectNothingLeft(name: string, home: string) {
  expect(
    await leftBehind({
      names: [name],
      servers: [source.primary],
      directories: [at(home), at(home, 'fast')],
    }),
  ).toEqual([]);
}

async function versionDirectoryIn(location: string): Promise<string> {
  return (await readdir(location)).find((name) => name.startsWith('PG_')) ?? '';
}

/** The main forks of all relations. */
async function relationsOf(home: string): Promise<readonly string[]> {
  const { stdout } = await runAsPartsUser([
    ...['find', at(home), '-type', 'f', '-regex', String.raw`.*/[0-9]+/[0-9]+\(\.[0-9]+\)?`],
    ...['-printf', String.raw`%P\n`],
  ]);
  return stdout.toString().split('\n').toSorted();
}

describe('a resync', () => {
  test('of a standby that has missed 5 % of its pages sends less than a quarter of what a full clone does', async () => {
    await using own = await startSource();
    const pages = 8_000;
    await makePages(own.primary, pages);
    const target = { dataDirectory: at('lagging', 'main') };
    const full = await runClone(own, {
      target,
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    });
    expect(full.error).toBeUndefined();
    await using lagging = await adoptServer(target.dataDirectory);
    await waitForReplay(own.primary, lagging);
    await lagging.stop('fast');
    await own.primary.query('UPDATE wide SET filler = filler WHERE id % 20 = 0');

    const { error, result } = await runClone(own, {
      target: { ...target, ifExists: 'resync' },
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    });

    expect(error).toBeUndefined();
    const { wireBytes, keptBytes, bytes } = result.result;
    const fullBytes: number = full.result.result.wireBytes;
    console.log(
      `missed ${String(pages / 20)} of ${String(pages)} pages: ${String(wireBytes)} bytes over the wire, ${((100 * wireBytes) / fullBytes).toFixed(1)} % of the ${String(fullBytes)} of a full clone`,
    );
    expect(bytes).toBeGreaterThan(pages * 8192);
    expect(wireBytes).toBeLessThan(fullBytes / 4);
    // What was sent is a part of what went over the wire.
    expect(bytes - keptBytes).toBeLessThan(wireBytes);
    await using standby = await adoptServer(target.dataDirectory);
    await waitForReplay(own.primary, standby);
    expect(await compareTables(own.primary, standby)).toEqual([]);
  });

  test('of a diverged cluster becomes the clone that a fresh one is', async () => {
    await makeDiverged('diverged');
    const main = at('diverged', 'main');
    const fresh = at('fresh', 'main');
    // Ghosts of every kind, and a file that has another name elsewhere.
    for (const name of ['backup_label', 'tablespace_map', 'recovery.signal', 'postmaster.pid'])
      await writePartsFile(join(main, name), 'stale');
    await writePartsFile(join(main, 'base', '1', '1259.1'), 'ghost rows');
    await writePartsFile(join(main, 'conf.d'), "port = 'nonsense'");
    await runAsPartsUser(['ln', join(main, 'postgresql.conf'), at('diverged', 'another name')]);
    await writePartsFile(join(main, 'postgresql.conf'), 'port = 1');
    await source.primary.query('CREATE TABLE since AS SELECT 1 AS id');
    await source.primary.query("UPDATE wide SET filler = 'here' WHERE id % 40 = 0");

    const resynced = await runClone(source, resyncOf('diverged'));
    const other = await runClone(source, { target: targetIn('fresh') });

    expect(resynced.error).toBeUndefined();
    expect(other.error).toBeUndefined();
    expect(resynced.messages).toContainEqual(expect.stringContaining(WARNING));
    expect(resynced.messages).toContainEqual(expect.stringContaining('has never seen'));
    expect(resynced.result.leftovers).toEqual([]);
    expect(resynced.result.result.wireBytes).toBeLessThan(other.result.result.wireBytes / 2);
    expect((await readdir(main)).toSorted()).toEqual((await readdir(fresh)).toSorted());
    expect(await relationsOf('diverged')).toEqual(await relationsOf('fresh'));
    expect(await readFile(at('diverged', 'another name'), 'utf8')).toBe('port = 1');
    await expectNothingLeft(resynced.name, 'diverged');
    await expectWhole('diverged');
  });

  test('into a directory that is absent or empty is an ordinary clone', async () => {
    await makeDirectory(at('empty', 'main'));

    const { error, messages, result } = await runClone(source, resyncOf('empty'));

    expect(error).toBeUndefined();
    expect(messages.filter((text) => text.includes(WARNING))).toEqual([]);
    expect(result.result.keptBytes).toBe(0);
  });

  test('empties the WAL directory of the old cluster where it is to lie there again', async () => {
    const wal = { walDirectory: at('own wal', 'wal') };
    await makeDiverged('own wal', wal);
    const before = await readdir(at('own wal', 'wal'));

    const { error, result } = await runClone(source, resyncOf('own wal', wal));

    expect(error).toBeUndefined();
    expect(result.leftovers).toEqual([]);
    const after = await readdir(at('own wal', 'wal'));
    expect(before.filter((name) => /^0000000[2-9]/.test(name))).not.toEqual([]);
    expect(after.filter((name) => /^0000000[2-9]/.test(name))).toEqual([]);
    expect(await readlink(at('own wal', 'main', 'pg_wal'))).toBe(at('own wal', 'wal'));
    await expectWhole('own wal');
  });

  test('names what of the old cluster lies elsewhere and is no part of the clone, and leaves it alone', async () => {
    await makeDiverged('moved', { walDirectory: at('moved', 'wal') });
    const before = [await treeOf('moved', 'wal'), await treeOf('moved', 'fast')];

    const { error, result, stderr } = await runClone(
      source,
      resyncOf('moved', { tablespaces: { [at('fast')]: at('moved', 'fast2') } }),
    );

    expect(error, stderr).toBeUndefined();
    const version = await versionDirectoryIn(at('moved', 'fast2'));
    expect(result.leftovers.map(({ remedy }: { remedy: string }) => remedy)).toEqual([
      `rm -r ${at('moved', 'wal')}`,
      `rm -r ${at('moved', 'fast', version)}`,
    ]);
    expect([await treeOf('moved', 'wal'), await treeOf('moved', 'fast')]).toEqual(before);
    await expectWhole('moved');
  });

  test.skipIf(!runsAsRoot)('of a mount point, which takes root to make, works', async () => {
    await using filesystem = await mountFilesystem({ type: 'tmpfs', bytes: 1_000_000_000 });
    const target = {
      dataDirectory: filesystem.path,
      tablespaces: { [at('fast')]: at('mounted', 'fast') },
    };
    expect((await runClone(source, { target })).error).toBeUndefined();

    const { error, name } = await runClone(source, {
      target: { ...target, ifExists: 'resync' },
    });

    expect(error).toBeUndefined();
    expect((await readdir(filesystem.path)).filter((entry) => /pgcloned-[^m]/.test(entry))).toEqual(
      [],
    );
    await expectNothingLeft(name, 'mounted');
    await using clone = await startCluster(filesystem.path);
    expect(await clone.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
  });
});

describe('a resync that does not end well', () => {
  test.each([
    ['killed', 'SIGKILL', 'fail'],
    ['cancelled', 'SIGTERM', 'resync'],
  ] as const)(
    'is %s by %s, cannot be started, and the next clone with ifExists: %s keeps what it has completed',
    async (home, signal, ifExists) => {
      await makeDiverged(home, { walDirectory: at(home, 'wal') });
      const spec = resyncOf(home, { walDirectory: at(home, 'wal') });
      const interrupted = await startClone(source, { ...spec, transfer: SLOW });
      await interrupted.copied(0.5);
      process.kill(interrupted.process.pid, signal);
      const { error: reason, name: before } = await interrupted.ended;
      if (signal === 'SIGTERM') {
        expect(reason).toMatchObject({ code: 'CANCELLED', phase: 'copy-files' });
        await expectNothingLeft(before, home);
      }
      expect(existsSync(at(home, 'main', 'global', 'pg_control'))).toBe(false);
      expect(existsSync(at(home, 'main', 'PG_VERSION'))).toBe(true);

      const { error, result, name } = await runClone(source, {
        target: { ...spec.target, ifExists },
      });

      expect(error).toBeUndefined();
      expect(result.result.keptBytes).toBeGreaterThan(result.result.bytes / 2);
      await expectNothingLeft(name, home);
      await expectWhole(home);
    },
  );
});

describe('refused, with nothing changed, is', () => {
  async function expectRefused(
    target: RunSpecText['target'],
    expected: object,
    status: number,
  ): Promise<void> {
    const before = await treeOf('refused');
    const ended = await runClone(source, { target: { ...target, ifExists: 'resync' } });
    expect(ended.error).toMatchObject({ phase: 'preflight', ...expected });
    expect(ended.status).toBe(status);
    expect(await treeOf('refused')).toBe(before);
    expect(await leftBehind({ names: [ended.name], servers: [source.primary] })).toEqual([]);
  }

  beforeAll(async () => {
    await makeDirectory(at('refused'));
  });

  test('another cluster, which can be started afterwards', async () => {
    const dataDirectory = at('refused', 'other');
    await using other = await startPrimary({ dataDirectory, ownIdentity: true });
    await other.query('CREATE TABLE mine AS SELECT 1 AS id');
    await other.stop('fast');
    const [row] = await source.primary.query<{ id: string }>(
      'SELECT system_identifier::text AS id FROM pg_control_system()',
    );

    await expectRefused(
      { ...targetIn('refused'), dataDirectory },
      {
        code: 'TARGET_OTHER_CLUSTER',
        message: expect.stringContaining(`the source is ${row?.id ?? ''}`),
        hint: expect.stringContaining('ifExists: replace'),
      },
      5,
    );

    await other.start();
    expect(await other.query('SELECT id FROM mine')).toEqual([{ id: 1 }]);
  });

  test('a cluster whose server runs', async () => {
    const dataDirectory = at('refused', 'running');
    await using _other = await startPrimary({ dataDirectory });
    await expectRefusedRunning(dataDirectory);
  });

  async function expectRefusedRunning(dataDirectory: string) {
    const { error, status } = await runClone(source, {
      target: { ...targetIn('refused'), dataDirectory, ifExists: 'resync' },
    });
    expect(error).toMatchObject({
      code: 'TARGET_IN_USE',
      hint: expect.stringContaining('pg_ctl stop'),
    });
    expect(status).toBe(5);
  }

  test('what is no data directory', async () => {
    await makeDirectory(at('refused', 'letters'));
    await writePartsFile(at('refused', 'letters', 'letter'), 'Dear Sir');

    await expectRefused(
      { ...targetIn('refused'), dataDirectory: at('refused', 'letters') },
      { code: 'TARGET_NOT_EMPTY', hint: expect.stringContaining('Choose another directory') },
      5,
    );
  });

  describe('of the same cluster', () => {
    const main = () => at('refused', 'main');
    const control = () => join(main(), 'global', 'pg_control');

    beforeAll(async () => {
      await makeDiverged('refused');
      await runAsPartsUser(['cp', '-p', control(), at('pg_control')]);
    });

    test.each([
      ['a damaged pg_control', async () => await writePartsFile(control(), 'x'.repeat(8192))],
      [
        'no pg_control, and no marker of ours',
        async () => {
          await rm(control());
          await rm(join(main(), '.pgcloned-marker'));
        },
      ],
    ])('one with %s', async (_case, damage) => {
      await damage();

      await expectRefused(
        targetIn('refused'),
        {
          code: 'TARGET_INVALID',
          message: expect.stringContaining('does not tell which cluster this is'),
          hint: expect.stringContaining('ifExists: replace'),
        },
        7,
      );

      await runAsPartsUser(['cp', '-p', at('pg_control'), control()]);
    });

    test('one of another major version', async () => {
      await writePartsFile(join(main(), 'PG_VERSION'), '14\n');

      await expectRefused(
        targetIn('refused'),
        { code: 'TARGET_OTHER_CLUSTER', message: expect.stringContaining('of PostgreSQL 14') },
        5,
      );

      await writePartsFile(join(main(), 'PG_VERSION'), `${String(source.primary.major)}\n`);
    });

    test('one with a directory that cannot be written', async () => {
      await chmod(join(main(), 'pg_xact'), 0o500);

      await expectRefused(
        targetIn('refused'),
        { code: 'TARGET_NOT_WRITABLE', message: expect.stringContaining('pg_xact') },
        7,
      );

      await chmod(join(main(), 'pg_xact'), 0o700);
    });

    test('one with a directory that cannot be read', async () => {
      await chmod(join(main(), 'pg_xact'), 0o300);

      const { error, status } = await runClone(source, resyncOf('refused'));
      await chmod(join(main(), 'pg_xact'), 0o700);

      expect(error).toMatchObject({
        code: 'TARGET_NOT_WRITABLE',
        phase: 'preflight',
        message: expect.stringContaining('pg_xact'),
      });
      expect(status).toBe(7);
    });

    test('one beside a tablespace directory that is not its own', async () => {
      const version = await versionDirectoryIn(at('refused', 'fast'));
      await makeDirectory(at('refused', 'strange', version, '5'));

      await expectRefused(
        { ...targetIn('refused'), tablespaces: { [at('fast')]: at('refused', 'strange') } },
        { code: 'TARGET_NOT_EMPTY', hint: expect.stringContaining('target.tablespaces') },
        5,
      );
    });

    test('one whose source has files that cannot be copied: it can be started afterwards', async () => {
      // A probe comes and goes to see whether it is the source's own: that is the time of the directory itself.
      const contents = async () => (await treeOf('refused', 'main')).replace(/^ d .*$/m, '');
      const before = await contents();
      const foreign = join(source.primary.dataDirectory, 'foreign');
      await symlink('/tmp', foreign);

      const { error } = await runClone(source, resyncOf('refused'));
      await rm(foreign);

      expect(error).toMatchObject({ code: 'SOURCE_LAYOUT_UNSUPPORTED', phase: 'copy-files' });
      expect(await contents()).toBe(before);
      await using old = await startCluster(at('refused', 'main'));
      expect(await old.query('SELECT count(*) FROM ghost')).toEqual([{ count: '5000' }]);
    });
  });

  test.each(['pin', 'none'])(
    'the source, although its server runs where it cannot be seen, with wal.retention: %s',
    async (retention) => {
      const { dataDirectory } = source.primary;
      await using _ = await hidePostmaster(source.primary);
      const { error } = await runClone(source, {
        target: {
          dataDirectory,
          ifExists: 'resync',
          tablespaces: { [at('fast')]: at('own', 'fast') },
        },
        wal: { retention },
      });

      expect(error).toMatchObject({
        code: 'TARGET_IN_USE',
        message: expect.stringContaining("is the source's own"),
      });
      expect(await source.primary.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
      expect((await readdir(dataDirectory)).filter((entry) => entry.includes('pgcloned'))).toEqual(
        [],
      );
    },
  );
});

describe('through the API', () => {
  test('one POST brings a stopped clone up to date, and says that there was no way back', async () => {
    const { dataDirectory } = targetOf('through the api');
    expect((await product.ended((await product.create('through the api', api())).id)).state).toBe(
      'succeeded',
    );

    const { id } = await product.create('through the api', api('resync'));
    const clone = await product.ended(id);

    expect(clone).toMatchObject({
      state: 'succeeded',
      result: { dataDirectory },
      warnings: expect.arrayContaining([expect.stringContaining(WARNING)]),
      instance: { state: 'stopped' },
      leftovers: [],
    });
    expect(clone.result?.keptBytes).toBeGreaterThan(20_000_000);
    expect(clone.result?.wireBytes).toBeLessThan(5_000_000);
  });

  test('the record tells a conflict from an unfit target', async () => {
    const dataDirectory = product.at('other', 'main');
    await using other = await startPrimary({ dataDirectory, ownIdentity: true });
    const refused = async () =>
      (await product.ended((await product.create('other', api('resync'))).id)).error;

    expect(await refused()).toMatchObject({ code: 'TARGET_IN_USE', retryable: false });
    await other.stop('fast');
    expect(await refused()).toMatchObject({ code: 'TARGET_OTHER_CLUSTER', retryable: false });
    await writePartsFile(join(dataDirectory, 'global', 'pg_control'), 'torn');
    expect(await refused()).toMatchObject({ code: 'TARGET_INVALID', retryable: false });
  });

  const targetOf = (name: string) => ({ dataDirectory: product.at(name, 'main') });
  const api = (ifExists = 'fail') => ({
    target: { ifExists, tablespaces: { [at('fast')]: product.at('fast') } },
  });
});
