/**
 * Clones on one host by reflinks (R10.*), on real XFS and btrfs: of a primary and of a standby, with everything that makes
 * files change meanwhile; and what becomes of them where blocks cannot be shared, the disk is full or somebody is killed.
 */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { lstat, mkdir, readdir, readlink, rm } from 'node:fs/promises';
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
  mountFilesystem,
  PGCLONED,
  type PostgresServer,
  runAsPartsUser,
  runsAsRoot,
  scratchDirectory,
  startCluster,
  startPrimary,
  startWriteLoad,
  stopServer,
  type TestFilesystem,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Gate, openGate } from '../kill-matrix/gate.ts';
import { type Ended, type RunSpecText, runClone, startClone } from './run-clone.ts';

const MIB = 1024 ** 2;

/** As `pgcloned run ORIGIN CLONE` says it; the superuser of the testbed may have another name than the user who tests. */
const sourceAt = (dataDirectory: string) => ({
  configuration: { local: true, dataDirectory, user: 'postgres' } as never,
});

/** WAL of all servers lies on one small filesystem. */
const LOAD_PAUSE_MS = 200;

const started = async () => ({
  replica: { role: 'standby', start: true, waitFor: 'streaming', port: await freePort() },
});

const reflinked = (target: RunSpecText['target'], more: object = {}): RunSpecText => ({
  method: 'reflink',
  target,
  // It can be compared with what it was made of.
  replica: { role: 'standby' },
  ...more,
});

describe.skipIf(!runsAsRoot).each(['xfs', 'btrfs'] as const)(
  'on %s, which takes root to mount,',
  (type) => {
    const owned = new AsyncDisposableStack();
    let filesystem: TestFilesystem;
    let primary: PostgresServer;
    const at = (...names: readonly string[]) => join(filesystem.path, ...names);
    const cloneInto = (name: string, more: object = {}) =>
      reflinked(
        {
          dataDirectory: at(name, 'data'),
          tablespaces: { [at('tablespace')]: at(name, 'tablespace') },
        },
        more,
      );

    beforeAll(async () => {
      filesystem = owned.use(await mountFilesystem({ type, bytes: 2048 * MIB }));
      owned.defer(async () => {
        // Of a test that failed: nobody else would stop them.
        for (const name of await readdir(filesystem.path)) await stopServer(at(name, 'data'));
      });
      await makeDirectory(at('origin'));
      // As many do for databases: what is made in it has no copy-on-write, and the tablespace has.
      if (type === 'btrfs') execFileSync('chattr', ['+C', at('origin')]);
      primary = owned.use(await startPrimary({ dataDirectory: at('origin', 'data') }));
      await primary.createTablespace('elsewhere', at('tablespace'));
      await installAmcheck(primary);
    });

    afterAll(async () => {
      await owned.disposeAsync();
    });

    /** Ends the clone; nobody writes on the primary. */
    const expectSame = async (name: string) => {
      await using clone = await adoptServer(at(name, 'data'));
      await waitForReplay(primary, clone);
      expect(await compareTables(primary, clone)).toEqual([]);
      expect(await findDamage(clone)).toBe('');
      await clone.stop();
      expect(await checkChecksums(clone)).toBeGreaterThan(0);
      expect(await linksIn(at(name, 'data'))).toEqual([at(name, 'tablespace')]);
    };

    const load = async () =>
      await startWriteLoad(primary, {
        tablespaces: ['elsewhere'],
        reuseTables: existsSync(at('first')),
        pauseMs: LOAD_PAUSE_MS,
      });

    const expectNothingLeft = async (...clones: readonly Ended[]) => {
      expect(await findDamage(primary)).toBe('');
      const names = clones.map(({ name }) => name);
      expect(await leftBehind({ names, servers: [primary], directories: [at()] })).toEqual([]);
    };

    test('a clone of a primary under load has all that it has, and shares its blocks', async () => {
      await using writing = await load();
      const clone = await runClone(
        sourceAt(primary.dataDirectory),
        cloneInto('first', await started()),
      );

      expect(clone.error).toBeUndefined();
      expect(clone.result.result).toMatchObject({
        source: { role: 'primary' },
        wireBytes: 0,
        verification: { transfer: 'passed', wal: 'passed', pages: 'skipped' },
      });
      expect(extentsOf(at('first', 'data', 'base', '1', '1255'))).toContain('shared');
      await writing.stop();
      await expectSame('first');
      await expectNothingLeft(clone);
    });

    // Of filesystems there is no more to show.
    if (type === 'xfs')
      test('so have clones of its standby and of itself that are made at once', async () => {
        await using standby = await startCluster(at('first', 'data'));
        await using writing = await load();
        const clones = await Promise.all([
          runClone(sourceAt(standby.dataDirectory), {
            ...cloneInto('second', { ...(await started()), verification: { pages: true } }),
            target: {
              dataDirectory: at('second', 'data'),
              tablespaces: { [at('first', 'tablespace')]: at('second', 'tablespace') },
            },
          }),
          runClone(sourceAt(primary.dataDirectory), cloneInto('third', await started())),
        ]);

        expect(clones.map(({ error }) => error)).toEqual([undefined, undefined]);
        expect(clones[0]?.result.result).toMatchObject({
          source: { role: 'standby' },
          verification: { pages: 'passed' },
        });
        await writing.stop();
        for (const name of ['second', 'third']) await expectSame(name);
        await standby.stop();
        await expectNothingLeft(...clones);
      });
  },
);

describe.skipIf(!runsAsRoot)('beside ext4, which takes root to mount,', () => {
  const owned = new AsyncDisposableStack();
  let xfs: TestFilesystem;
  let ext4: TestFilesystem;
  let primary: PostgresServer;
  let gate: Gate;
  let env: Readonly<Record<string, string>>;

  beforeAll(async () => {
    xfs = owned.use(await mountFilesystem({ type: 'xfs', bytes: 512 * MIB }));
    ext4 = owned.use(await mountFilesystem({ type: 'ext4', bytes: 512 * MIB }));
    primary = owned.use(
      await startPrimary({
        dataDirectory: join(xfs.path, 'origin', 'data'),
        walDirectory: join(ext4.path, 'wal'),
      }),
    );
    await primary.query('CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id');
    gate = owned.use(await openGate(join(owned.use(await scratchDirectory()).path, 'gate')));
    const hold = new URL('../kill-matrix/hold-phases.ts', import.meta.url);
    hold.searchParams.set('socket', gate.socketPath);
    env = { NODE_OPTIONS: `--import=${hold.href}` };
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  const into = (filesystem: TestFilesystem, more: object = {}) =>
    reflinked({ dataDirectory: join(filesystem.path, 'clone', 'data') }, more);

  const expectNothing = async () => {
    expect(await readdir(xfs.path)).toEqual(['origin']);
    expect((await readdir(ext4.path)).sort()).toEqual(['lost+found', 'wal']);
    const names = [xfs, ext4].map(({ path }) => join(path, 'clone'));
    expect(await leftBehind({ names, servers: [primary] })).toEqual([]);
  };

  /** It can be started, without any other, and has what it was made of. */
  const expectWhole = async (dataDirectory: string) => {
    const wal = await lstat(join(dataDirectory, 'pg_wal'));
    expect(wal.isDirectory()).toBe(true);
    await using clone = await startCluster(dataDirectory);
    await waitForReplay(primary, clone);
    expect(await compareTables(primary, clone)).toEqual([]);
    await clone.stop();
    expect(await checkChecksums(clone)).toBeGreaterThan(0);
    await rm(join(dataDirectory, '..'), { recursive: true });
  };

  test('pgcloned run needs no more than ORIGIN and CLONE, and makes a cluster of its own', async () => {
    const dataDirectory = join(xfs.path, 'clone', 'data');
    const asked = ['run', '--method', 'reflink', '--start', primary.dataDirectory, dataDirectory];
    const { stdout } = await runAsPartsUser([process.execPath, PGCLONED, ...asked]);

    expect(stdout.toString()).toContain(
      `clone of ${primary.dataDirectory} is ready in ${dataDirectory}`,
    );
    expect(stdout.toString()).toMatch(/^ {2}cloned .* files$/m);
    expect(stdout.toString()).not.toContain('over the wire');
    const clone = await adoptServer(dataDirectory);
    await clone.query('INSERT INTO kept VALUES (0)');
    expect(await clone.query('SELECT count(*)::int AS rows FROM kept')).toEqual([{ rows: 1001 }]);
    await clone.stop();
    await rm(join(xfs.path, 'clone'), { recursive: true });
    await expectNothing();
  });

  test('a clone there is refused with both filesystems and a remedy, and leaves nothing', async () => {
    const { status, error } = await runClone(sourceAt(primary.dataDirectory), into(ext4));

    expect(status).toBe(7);
    expect(error).toMatchObject({
      code: 'REFLINK_UNSUPPORTED',
      phase: 'preflight',
      message: expect.stringMatching(/\bxfs on .* ext4 on /),
      hint: expect.stringMatching(/XFS or btrfs.*below .*mnt/),
    });
    await expectNothing();
  });

  test('it is copied if that is asked for, and says so', async () => {
    const spec = into(ext4, { transfer: { fallback: 'copy' } });
    const { error, result, messages } = await runClone(sourceAt(primary.dataDirectory), spec);

    expect(error).toBeUndefined();
    expect(result.result.verification.transfer).toBe('skipped');
    expect(messages.join('\n')).toMatch(/cannot share blocks .* is copied/);
    await expectWhole(join(ext4.path, 'clone', 'data'));
  });

  test('WAL that lies there is copied, and a clone replaces another one', async () => {
    const { error } = await runClone(sourceAt(primary.dataDirectory), into(xfs));
    expect(error).toBeUndefined();
    await primary.query('INSERT INTO kept SELECT generate_series(1, 1000)');

    const again = await runClone(sourceAt(primary.dataDirectory), {
      ...into(xfs),
      target: { dataDirectory: join(xfs.path, 'clone', 'data'), ifExists: 'replace' },
    });
    expect(again.error).toBeUndefined();
    await expectWhole(join(xfs.path, 'clone', 'data'));
  });

  test('a disk that runs full ends the clone, and what it had made is gone', async () => {
    using held = gate.catchAt('makeDirectories');
    const clone = await startClone(sourceAt(primary.dataDirectory), into(xfs), { env });
    await held.held;
    await mkdir(join(xfs.path, 'full'));
    fill(join(xfs.path, 'full'));
    held.letGo();
    const { error } = await clone.ended;
    await rm(join(xfs.path, 'full'), { recursive: true });

    expect(error).toMatchObject({ code: 'TARGET_NO_SPACE', hint: expect.stringContaining('room') });
    await expectNothing();
  });

  test.each(['makeDirectories', 'stopBackup', 'configureReplica'] as const)(
    'kill -9 before %s goes on leaves nothing that can be started, and the next clone takes its place',
    async (place) => {
      const dataDirectory = join(xfs.path, 'clone', 'data');
      {
        using held = gate.catchAt(place);
        const clone = await startClone(sourceAt(primary.dataDirectory), into(xfs), { env });
        await held.held;
        process.kill(clone.process.pid, 'SIGKILL');
        await clone.ended;
      }
      expect(existsSync(join(dataDirectory, 'global', 'pg_control'))).toBe(false);
      await expect(startCluster(dataDirectory)).rejects.toThrow();

      const { error } = await runClone(sourceAt(primary.dataDirectory), into(xfs));
      expect(error).toBeUndefined();
      await rm(join(xfs.path, 'clone'), { recursive: true });
      await expectNothing();
    },
  );
});

/** Until not even a directory entry fits. */
function fill(directory: string): void {
  const script =
    'dd if=/dev/zero of=large bs=1M; dd if=/dev/zero of=small bs=4k; n=0; while echo >"$n"; do n=$((n + 1)); done';
  execFileSync('sh', ['-c', script], { cwd: directory, stdio: 'ignore' });
}

const extentsOf = (file: string): string =>
  execFileSync('/usr/sbin/filefrag', ['-v', file], { encoding: 'utf8' });

/** Where all symbolic links below a directory lead. */
async function linksIn(directory: string): Promise<readonly string[]> {
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  const links = entries.filter((entry) => entry.isSymbolicLink());
  return await Promise.all(links.map(({ parentPath, name }) => readlink(join(parentPath, name))));
}
