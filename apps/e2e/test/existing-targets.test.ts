/**
 * Targets in which something lies already: what may be replaced, what comes back when that fails, what is reused, and
 * what is never touched.
 */
import { existsSync } from 'node:fs';
import { chmod, mkdir, readdir, readFile, readlink, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  compareTables,
  freePort,
  hidePostmaster,
  leftBehind,
  makeDirectory,
  mountFilesystem,
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
import { runClone, startClone } from './run-clone.ts';

/** 22 MB take four seconds: there is a middle to stop in. */
const SLOW = { maxRate: 6_000_000, workers: 2 };
/** Of the source; the one thing in a copy that nobody can overcome by trying again. */
const UNREADABLE = 'unreadable';

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(await startSource());
  directory = owned.use(await scratchDirectory()).path;
  await source.primary.createTablespace('fast', join(directory, 'fast'));
  await source.primary.query('CREATE TABLE kept TABLESPACE fast AS SELECT 42 AS id');
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

/** A clone with everything that can lie elsewhere, below `home`. */
const targetIn = (home: string) => ({
  dataDirectory: at(home, 'main'),
  walDirectory: at(home, 'wal'),
  tablespaces: { [at('fast')]: at(home, 'fast') },
});

/** A file that makes every copy fail, and is named. */
async function plantUnreadable(): Promise<AsyncDisposable> {
  const path = join(source.primary.dataDirectory, UNREADABLE);
  await writePartsFile(path, '');
  await chmod(path, 0o000);
  return {
    [Symbol.asyncDispose]: async () => {
      await rm(path);
    },
  };
}

/** Makes the cluster that is to be replaced: a clone, promoted, with a table of its own, stopped. */
async function makeOld(home: string): Promise<void> {
  const { error } = await runClone(source, { target: targetIn(home) });
  expect(error).toBeUndefined();
  // Its first start would make the links anew (R1.12), but nobody is led to the source before it either.
  const links = at(home, 'main', 'pg_tblspc');
  const [oid = ''] = await readdir(links);
  expect(await readlink(join(links, oid))).toBe(at(home, 'fast'));
  await using old = await startCluster(at(home, 'main'));
  await old.query('SELECT pg_promote()');
  await old.query('CREATE TABLE old TABLESPACE fast AS SELECT 1 AS id');
  await old.stop('fast');
}

async function expectOld(home: string): Promise<void> {
  await using old = await startCluster(at(home, 'main'));
  expect(await old.query('SELECT id FROM old')).toEqual([{ id: 1 }]);
  expect(await old.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
}

async function expectNothingLeft(home: string, name: string, pidsKept: number[] = []) {
  expect((await readdir(at(home))).toSorted()).toEqual(['fast', 'main', 'wal']);
  expect(
    await leftBehind({
      names: [name],
      servers: [source.primary],
      directories: [at(home), at(home, 'fast')],
      pidsKept,
    }),
  ).toEqual([]);
}

describe('replace', () => {
  test('puts the clone in the place of the old cluster, its WAL and its tablespaces, and removes those', async () => {
    await makeOld('replaced');

    const { error, result, name } = await runClone(source, {
      target: { ...targetIn('replaced'), ifExists: 'replace' },
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    });

    expect(error).toBeUndefined();
    expect(result.leftovers).toEqual([]);
    await using standby = await adoptServer(at('replaced', 'main'));
    await waitForReplay(source.primary, standby);
    expect(await compareTables(source.primary, standby)).toEqual([]);
    await expectNothingLeft('replaced', name, [standby.pid]);
  });

  test('of a cluster that was never ours, with the postmaster.pid of a crash, works', async () => {
    const other = await startPrimary({ dataDirectory: at('foreign', 'main') });
    await other.query('CREATE TABLE old AS SELECT 1 AS id');
    await runAsPartsUser(['cp', '-p', at('foreign', 'main', 'postmaster.pid'), at('pid')]);
    await other[Symbol.asyncDispose]();
    await runAsPartsUser(['cp', '-p', at('pid'), at('foreign', 'main', 'postmaster.pid')]);

    const { error } = await runClone(source, {
      target: {
        dataDirectory: at('foreign', 'main'),
        tablespaces: { [at('fast')]: at('foreign', 'fast') },
        ifExists: 'replace',
      },
    });

    expect(error).toBeUndefined();
    expect((await readdir(at('foreign'))).toSorted()).toEqual(['fast', 'main']);
    await using standby = await startCluster(at('foreign', 'main'));
    expect(await standby.query("SELECT to_regclass('old') AS old")).toEqual([{ old: null }]);
  });

  test('that fails leaves the old cluster as it was', async () => {
    await makeOld('failed');
    await using _ = await plantUnreadable();

    const { error, name } = await runClone(source, {
      target: { ...targetIn('failed'), ifExists: 'replace' },
    });

    expect(error).toMatchObject({ code: 'TRANSFER_FAILED', phase: 'copy-files' });
    await expectNothingLeft('failed', name);
    await expectOld('failed');
  });

  test('that is cancelled leaves the old cluster as it was', async () => {
    await makeOld('cancelled');
    const running = await startClone(source, {
      target: { ...targetIn('cancelled'), ifExists: 'replace' },
      transfer: SLOW,
    });
    await running.copied(0.2);
    await running.process.stop('SIGTERM');

    const { error, name } = await running.ended;

    expect(error).toMatchObject({ code: 'CANCELLED', phase: 'copy-files' });
    await expectNothingLeft('cancelled', name);
    await expectOld('cancelled');
  });

  test('whose server does not start keeps the old cluster and says where it is', async () => {
    await makeOld('unstarted');
    const config = at('start.yaml');
    await writePartsFile(config, JSON.stringify({ worker: { start: { command: ['false'] } } }));

    const { error, status, stderr } = await runClone(
      source,
      {
        target: { ...targetIn('unstarted'), ifExists: 'replace' },
        replica: { start: true, port: await freePort() },
      },
      { arguments: ['--config', config] },
    );

    expect(error).toMatchObject({ code: 'REPLICA_START_FAILED', phase: 'start-replica' });
    expect(status).toBe(8);
    const old = (await readdir(at('unstarted'))).filter((entry) => entry.includes('.pgcloned-old'));
    expect(old.map((entry) => entry.replace(/\.pgcloned-old.*/, ''))).toEqual(['main', 'wal']);
    expect(stderr).not.toContain('unfinished');
    for (const entry of old) expect(stderr).toContain(at('unstarted', entry));
    expect(existsSync(at('unstarted', 'main', 'global', 'pg_control'))).toBe(true);
  });

  test('never replaces the source, although its server runs where it cannot be seen', async () => {
    const { dataDirectory } = source.primary;
    await using _ = await hidePostmaster(source.primary);
    const { error, name } = await runClone(source, {
      target: {
        dataDirectory,
        ifExists: 'replace',
        tablespaces: { [at('fast')]: at('own', 'fast') },
      },
    });

    expect(error).toMatchObject({
      code: 'TARGET_IN_USE',
      message: expect.stringContaining("is the source's own"),
      hint: 'Choose another directory for the clone.',
    });
    expect(
      await leftBehind({ names: [name], servers: [source.primary], directories: [dataDirectory] }),
    ).toEqual([]);
    expect(await source.primary.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
    expect(
      (await readdir(join(dataDirectory, '..'))).filter((entry) => entry.includes('pgcloned')),
    ).toEqual([]);
  });

  test.skipIf(!runsAsRoot)('of a mount point, which takes root to make, is refused', async () => {
    await using filesystem = await mountFilesystem({ type: 'tmpfs', bytes: 200_000_000 });
    const target = {
      dataDirectory: filesystem.path,
      tablespaces: { [at('fast')]: at('mounted', 'fast') },
    };
    expect((await runClone(source, { target })).error).toBeUndefined();

    const { error, status } = await runClone(source, {
      target: { ...target, ifExists: 'replace' },
    });

    expect(error).toMatchObject({
      code: 'TARGET_INVALID',
      message: `${filesystem.path} is a mount point or a subvolume and cannot be replaced`,
      hint: expect.stringContaining('ifExists: resync'),
    });
    expect(status).toBe(7);
    expect(existsSync(join(filesystem.path, 'global', 'pg_control'))).toBe(true);
  });
});

describe('without replace', () => {
  test.each([
    {
      what: 'whatever its size',
      transfer: {},
      tamper: async (stale: string) => {
        await writeFile(stale, 'XX\n');
      },
    },
    {
      what: 'whatever its size and time, where contents are compared',
      transfer: { checksum: true },
      tamper: async (stale: string) => {
        await writeFile(stale, 'XX\n');
        await runAsPartsUser([
          'touch',
          '-r',
          join(source.primary.dataDirectory, 'PG_VERSION'),
          stale,
        ]);
      },
    },
  ])(
    'no stale file of a failed clone survives the next one, $what',
    async ({ what, transfer, tamper }) => {
      const home = `reused ${what}`;
      const target = targetIn(home);
      {
        await using _ = await plantUnreadable();
        const { error, status } = await runClone(source, { target });
        expect(error).toMatchObject({
          code: 'TRANSFER_FAILED',
          phase: 'copy-files',
          message: expect.stringContaining(UNREADABLE),
          hint: 'Connect by SSH as the user that owns the cluster, which is usually postgres.',
        });
        expect(status).toBe(8);
      }
      const stale = at(home, 'main', 'PG_VERSION');
      const ghost = at(home, 'main', 'base', '1', '1259.1');
      await tamper(stale);
      await writePartsFile(ghost, 'ghost rows');

      const { error, name } = await runClone(source, { target, transfer });

      expect(error).toBeUndefined();
      expect(await readFile(stale, 'utf8')).toBe(
        await readFile(join(source.primary.dataDirectory, 'PG_VERSION'), 'utf8'),
      );
      expect(existsSync(ghost)).toBe(false);
      await expectNothingLeft(home, name);
      await using standby = await startCluster(at(home, 'main'));
      expect(await standby.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
    },
  );

  test('a second clone into the same directory is refused, and the first stays as it is', async () => {
    const target = targetIn('twice');
    expect((await runClone(source, { target })).error).toBeUndefined();
    const before = (await stat(at('twice', 'main', 'global', 'pg_control'))).mtimeMs;

    const { error, status, name } = await runClone(source, { target });

    expect(error).toMatchObject({
      code: 'TARGET_NOT_EMPTY',
      phase: 'preflight',
      message: `${at('twice', 'main')} is not empty`,
      hint: expect.stringContaining('ifExists: replace'),
    });
    expect(status).toBe(5);
    expect((await stat(at('twice', 'main', 'global', 'pg_control'))).mtimeMs).toBe(before);
    await expectNothingLeft('twice', name);
  });

  test('an empty directory of any mode will do, and lost+found in it stays', async () => {
    const target = targetIn('empty');
    await makeDirectory(at('empty'));
    await runAsPartsUser(['mkdir', '-m', '0755', target.dataDirectory, target.walDirectory]);
    // As of a filesystem that root has made.
    await runAsPartsUser(['mkdir', '--mode', '000', join(target.dataDirectory, 'lost+found')]);

    const { error } = await runClone(source, { target });

    expect(error).toBeUndefined();
    expect((await stat(target.dataDirectory)).mode & 0o777).toBe(0o700);
    expect((await stat(target.walDirectory)).mode & 0o777).toBe(0o700);
    expect(existsSync(join(target.dataDirectory, 'lost+found'))).toBe(true);
    await using standby = await startCluster(target.dataDirectory);
    expect(await standby.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
  });

  test('what somebody keeps in the directory for temporary WAL stays, even if it looks like WAL', async () => {
    const garbage = ['letter', '000000010000000000000001', '0000000100000000000000FF.partial'];
    await makeDirectory(at('shared wal'));
    for (const name of garbage) await writePartsFile(at('shared wal', name), `my ${name}`);
    await mkdir(at('shared wal', 'folder'));

    const { error } = await runClone(source, {
      target: { ...targetIn('beside garbage'), temporaryWalDirectory: at('shared wal') },
    });

    expect(error).toBeUndefined();
    expect((await readdir(at('shared wal'))).toSorted()).toEqual(['folder', ...garbage].toSorted());
    for (const name of garbage)
      expect(await readFile(at('shared wal', name), 'utf8')).toBe(`my ${name}`);
    await using standby = await startCluster(at('beside garbage', 'main'));
    expect(await standby.query('SELECT id FROM kept')).toEqual([{ id: 42 }]);
  });
});
