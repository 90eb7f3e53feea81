/**
 * Clones that are no standbys: they write, on a timeline of their own, and beside their source on one host.
 */
import { appendFile, chmod, readdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import {
  adoptServer,
  asPartsUser,
  installedMajors,
  leftBehind,
  type PostgresServer,
  partsEnvironment,
  runAsPartsUser,
  type Source,
  scratchDirectory,
  startCluster,
  startPrimary,
  startSource,
  startStandbyOf,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Ended, runClone, startClone } from './run-clone.ts';

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

/** What a copied configuration would do to a cluster that writes, or to others through it. */
const HARMFUL = {
  synchronous_standby_names: '*',
  archive_command: 'touch /somewhere',
  restore_command: 'touch /somewhere',
  primary_conninfo: 'host=nowhere password=of-its-upstream',
  recovery_target: 'immediate',
  recovery_target_timeline: 'current',
  listen_addresses: '*',
  wal_keep_size: '10GB',
  max_connections: '61',
};

const newestMajor = installedMajors().at(-1) ?? 0;
const hasFailoverSlots = newestMajor >= 17;

beforeAll(async () => {
  source = owned.use(
    await startSource({
      settings: {
        archive_mode: 'on',
        log_directory: '/nowhere/log',
        max_prepared_transactions: '5',
        min_dynamic_shared_memory: '8MB',
        ...(hasFailoverSlots && { synchronized_standby_slots: 'of_a_standby' }),
      },
    }),
  );
  directory = owned.use(await scratchDirectory()).path;
  await source.primary.query(
    'CREATE TABLE people AS SELECT n AS id, $$secret $$ || n AS name FROM generate_series(1, 1000) AS n',
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

const detached = { role: 'detached', start: true, waitFor: 'writable' };

async function one(server: PostgresServer, sql: string): Promise<unknown> {
  const [row] = await server.query<{ value: unknown }>(`SELECT (${sql}) AS value`);
  return row?.value;
}

async function expectNothingLeft({ name }: Pick<Ended, 'name'>, pids: readonly number[] = []) {
  expect(
    await leftBehind({
      names: [name],
      servers: [source.primary],
      directories: [directory],
      pidsKept: pids,
    }),
  ).toEqual([]);
}

test('a detached clone writes on a timeline and a port of its own, whatever its source has in its settings', async () => {
  for (const [name, value] of Object.entries(HARMFUL))
    await source.primary.query(`ALTER SYSTEM SET ${name} = '${value}'`);
  await source.primary.query(
    'ALTER SYSTEM SET shared_preload_libraries = auto_explain, pg_cron, pglogical',
  );
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await source.primary.query('ALTER SYSTEM RESET ALL');
  });

  const ended = await runClone(source, {
    target: { dataDirectory: at('own', 'main') },
    replica: { ...detached, profile: 'small', settings: { max_connections: 20, work_mem: '5MB' } },
  });

  expect(ended.error).toBeUndefined();
  await using clone = await adoptServer(at('own', 'main'));
  expect(clone.port).toBeGreaterThanOrEqual(5500);
  expect(clone.port).toBeLessThanOrEqual(5999);
  expect(clone.socketDirectory).toBe(at('own', 'main'));
  expect(ended.result.instance).toMatchObject({ state: 'running', port: clone.port });
  for (const warning of [
    'pg_cron is not loaded in the clone, which would run the jobs of its source',
    'pglogical is not loaded in the clone, which would take changes in the place of its source',
  ])
    expect(ended.result.result.warnings).toContain(warning);
  await clone.query('INSERT INTO people VALUES (0, $$mine$$)');
  expect(await one(clone, 'SELECT count(*)::int FROM people')).toBe(1001);
  expect(await one(clone, 'pg_walfile_name(pg_current_wal_lsn())')).toMatch(/^00000002/);
  const settings = await clone.query<{ name: string; setting: string }>(
    `SELECT name, setting FROM pg_settings WHERE name = ANY ($1)`,
    [
      [
        ...Object.keys(HARMFUL),
        ...[
          'archive_mode',
          'log_directory',
          'shared_preload_libraries',
          'shared_buffers',
          'work_mem',
          'max_logical_replication_workers',
          'min_dynamic_shared_memory',
          'synchronized_standby_slots',
        ],
      ],
    ],
  );
  expect(Object.fromEntries(settings.map(({ name, setting }) => [name, setting]))).toMatchObject({
    archive_mode: 'off',
    listen_addresses: 'localhost',
    log_directory: 'log',
    max_connections: '20',
    max_logical_replication_workers: '0',
    min_dynamic_shared_memory: '0',
    primary_conninfo: '',
    recovery_target: '',
    shared_buffers: '8192',
    shared_preload_libraries: 'auto_explain',
    synchronous_standby_names: '',
    wal_keep_size: '0',
    work_mem: '5120',
    ...(hasFailoverSlots && { synchronized_standby_slots: '' }),
  });
  for (const name of ['postgresql.auto.conf', 'pgcloned.postgresql.auto.conf.original'])
    expect(await readFile(at('own', 'main', name), 'utf8')).not.toContain('of-its-upstream');
  expect(await source.primary.query('SELECT FROM pg_stat_replication')).toEqual([]);
  const { stdout } = await runProcess(
    psql(ended.result.result.connectionString, clone.binDirectory),
    { signal: new AbortController().signal },
  );
  expect(stdout.toString()).toBe('1001\n');
  await expectNothingLeft(ended, [clone.pid]);

  await clone.stop();
  // What brought it there is gone, and strikes nobody who makes a standby of it.
  await using again = await startCluster(at('own', 'main'));
  expect(
    await again.query(
      `SELECT name, setting FROM pg_settings
        WHERE name IN ('hot_standby', 'hba_file', 'restore_command') ORDER BY 1`,
    ),
  ).toEqual([
    { name: 'hba_file', setting: at('own', 'main', 'pg_hba.conf') },
    { name: 'hot_standby', setting: 'on' },
    { name: 'restore_command', setting: '' },
  ]);
});

/** As the user of the parts, who is a superuser there. */
function psql(connectionString: string, binDirectory: string) {
  const [file = '', ...args] = asPartsUser([
    join(binDirectory, 'psql'),
    ...['-XAt', '-U', 'postgres', '-c', 'SELECT count(*) FROM people', connectionString],
  ]);
  return { file, args, env: partsEnvironment };
}

test('a detached clone that somebody else starts promotes itself all the same', async () => {
  const ended = await runClone(source, {
    target: { dataDirectory: at('later', 'main') },
    replica: { role: 'detached' },
  });

  expect(ended.error).toBeUndefined();
  expect(ended.result.result.connectionString).toBeNull();
  expect(ended.result.instance.state).toBe('stopped');
  await using clone = await startCluster(at('later', 'main'));
  // Before that it takes no sessions.
  await expect.poll(async () => await one(clone, 'pg_is_in_recovery()').catch(String)).toBe(false);
  expect(await one(clone, 'pg_walfile_name(pg_current_wal_lsn())')).toMatch(/^00000002/);
});

test('a detached clone that is published needs its source no more', async () => {
  const running = await startClone(source, {
    target: { dataDirectory: at('alone', 'main') },
    replica: { role: 'detached', waitFor: 'writable' },
  });
  await running.reached('start-replica');
  await source.primary.stop();
  await source.primary.start();
  await using _clone = await startCluster(at('alone', 'main'));

  const ended = await running.ended;

  expect(ended.error).toBeUndefined();
});

test('what its source has by its command line and by files of other names, a clone has as well', async () => {
  await using primary = await startPrimary();
  const { dataDirectory } = primary;
  const inSource = (name: string) => join(dataDirectory, name);
  await primary.stop();
  await rename(inSource('postgresql.conf'), inSource('of the site.conf'));
  await rename(inSource('pg_hba.conf'), inSource('people.conf'));
  await appendFile(
    inSource('of the site.conf'),
    `hba_file = '${inSource('people.conf')}'\nmax_connections = 21\n`,
  );
  await using running = await startCluster(dataDirectory, {
    configFile: inSource('of the site.conf'),
    settings: {
      logging_collector: 'on',
      log_directory: '../logs',
      max_connections: '22',
      max_prepared_transactions: '3',
    },
  });
  await running.query("BEGIN; CREATE TABLE kept (); PREPARE TRANSACTION 'one'");

  const ended = await runClone(
    { configuration: { local: true, dataDirectory, user: 'postgres' } as never },
    {
      method: 'reflink',
      target: { dataDirectory: at('by line', 'main') },
      transfer: { fallback: 'copy' },
      replica: detached,
    },
  );

  expect(ended.error).toBeUndefined();
  await using clone = await adoptServer(at('by line', 'main'));
  expect(await one(clone, "current_setting('max_connections')")).toBe('22');
  expect(await one(clone, "current_setting('hba_file')")).toBe(
    at('by line', 'main', 'pg_hba.conf'),
  );
  expect(await clone.query('SELECT gid FROM pg_prepared_xacts')).toEqual([{ gid: 'one' }]);
  // The log of the source lies beside its data directory, and would be that of all clones there.
  expect(await readdir(at('by line'))).toEqual(['main']);
});

test('of what lies in the directory of its source a clone has its own, and nothing that its source has not started with', async () => {
  await using primary = await startPrimary();
  const { dataDirectory } = primary;
  const inSource = (name: string) => join(dataDirectory, name);
  const request = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=testbed'];
  const files = ['-keyout', inSource('server.key'), '-out', inSource('server.crt')];
  await runAsPartsUser(['openssl', ...request, ...files]);
  for (const name of ['ssl_cert_file', 'ssl_ca_file'])
    await primary.query(`ALTER SYSTEM SET ${name} = '${inSource('server.crt')}'`);
  await primary.query(`ALTER SYSTEM SET ssl_key_file = '${inSource('server.key')}'`);
  await primary.query('ALTER SYSTEM SET ssl = on');
  await primary.query('SELECT pg_reload_conf()');
  await expect.poll(async () => await one(primary, "current_setting('ssl')")).toBe('on');
  // No host of a test has pages set aside for that.
  await primary.query("ALTER SYSTEM SET huge_pages = 'on'");

  const { error } = await runClone(
    { configuration: { local: true, dataDirectory, user: 'postgres' } as never },
    {
      method: 'reflink',
      target: { dataDirectory: at('with-ssl', 'main') },
      transfer: { fallback: 'copy' },
      replica: detached,
    },
  );

  expect(error).toBeUndefined();
  await using clone = await adoptServer(at('with-ssl', 'main'));
  const settings = await clone.query<{ name: string; setting: string }>(
    "SELECT name, setting FROM pg_settings WHERE name IN ('huge_pages', 'ssl') OR name LIKE 'ssl_%_file'",
  );
  expect(Object.fromEntries(settings.map(({ name, setting }) => [name, setting]))).toMatchObject({
    huge_pages: 'try',
    ssl: 'on',
    ssl_ca_file: 'server.crt',
    ssl_cert_file: 'server.crt',
    ssl_key_file: 'server.key',
  });
});

test.skipIf(newestMajor < 18)(
  'io_uring of its source, for which this host lets it open too few files, keeps no clone from starting',
  async () => {
    await using primary = await startPrimary({
      settings: { io_method: 'io_uring', max_connections: '400' },
    });

    const ended = await runClone(
      {
        configuration: { local: true, dataDirectory: primary.dataDirectory, user: 'postgres' },
      } as never,
      {
        method: 'reflink',
        target: { dataDirectory: at('no ring', 'main') },
        transfer: { fallback: 'copy' },
        replica: detached,
      },
      { on: (argv) => ['prlimit', '--nofile=300:300', ...argv] },
    );

    expect(ended.error).toBeUndefined();
    expect(ended.result.result.warnings).toContain(
      "io_method of the source (io_uring) cannot work here; it is 'worker' instead",
    );
    await using clone = await adoptServer(at('no ring', 'main'));
    expect(await one(clone, "current_setting('io_method')")).toBe('worker');
  },
);

test('a detached clone of a standby ends where the standby was, whatever that has received beyond', async () => {
  await using standby = await startStandbyOf(source);
  // What the backup ends with lies in one segment with what follows.
  await source.primary.query('CREATE TABLE later ()');
  await source.primary.query('CHECKPOINT');
  await waitForReplay(source.primary, standby.standby);
  await standby.standby.query('CHECKPOINT');
  await standby.standby.query('SELECT pg_wal_replay_pause()');
  await expect
    .poll(async () => await one(standby.standby, 'pg_get_wal_replay_pause_state()'))
    .toBe('paused');
  await source.primary.query('ALTER TABLE later RENAME TO renamed');
  await expect
    .poll(
      async () =>
        await one(standby.standby, 'pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()'),
    )
    .toBe(true);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await source.primary.query('DROP TABLE renamed');
  });

  const { dataDirectory } = standby.standby;
  const ended = await runClone(
    { configuration: { local: true, dataDirectory, user: 'postgres' } as never },
    {
      method: 'reflink',
      target: { dataDirectory: at('paused', 'main') },
      transfer: { fallback: 'copy' },
      replica: detached,
      verification: { boot: true },
    },
  );

  expect(ended.error).toBeUndefined();
  await using clone = await adoptServer(at('paused', 'main'));
  expect(await one(clone, 'SELECT count(*)::int FROM people')).toBe(1000);
  expect(await one(clone, "to_regclass('later')::text")).toBe('later');
});

test('a standby can be the source of a detached clone', async () => {
  await using standby = await startStandbyOf(source);

  const ended = await runClone(standby, {
    target: { dataDirectory: at('of a standby', 'main') },
    replica: { ...detached },
    verification: { boot: true },
  });

  expect(ended.error).toBeUndefined();
  expect(ended.result.result.verification.boot).toBe('passed');
  await using clone = await adoptServer(at('of a standby', 'main'));
  await clone.query('DELETE FROM people');
  expect(await one(clone, 'pg_walfile_name(pg_current_wal_lsn())')).toMatch(/^00000002/);
});

test('the onReady files have run before anybody can reach the clone', async () => {
  await writePartsFile(at('mask.sql'), "UPDATE people SET name = 'masked';\n\\ir more.sql\n");
  await writePartsFile(
    at('more.sql'),
    'CREATE ROLE tester LOGIN;\nTRUNCATE letters;\n\\connect other\nDELETE FROM letters;\n',
  );
  const letters =
    'CREATE TABLE letters AS SELECT $$secret $$ || n % 9 AS body FROM generate_series(1, 999) AS n';
  await source.primary.query('CREATE DATABASE other');
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await source.primary.query('DROP DATABASE other');
    await source.primary.query('DROP TABLE letters');
  });
  for (const database of ['postgres', 'other'])
    for (const sql of [letters, 'ANALYZE']) await source.primary.query(sql, [], database);

  const ended = await runClone(source, {
    source: { onReady: [at('mask.sql')] },
    target: { dataDirectory: at('masked', 'main') },
    replica: detached,
  });

  expect(ended.error).toBeUndefined();
  await using clone = await adoptServer(at('masked', 'main'));
  expect(await clone.query('SELECT DISTINCT name FROM people')).toEqual([{ name: 'masked' }]);
  expect(await one(clone, "SELECT count(*)::int FROM pg_roles WHERE rolname = 'tester'")).toBe(1);
  // Also of what they were before nothing is told, to whom pg_stats tells of a table.
  for (const database of ['postgres', 'other']) {
    const told = `SELECT tablename FROM pg_stats
                   WHERE concat(most_common_vals, histogram_bounds) LIKE '%secret%'`;
    expect(await clone.query(told, [], database)).toEqual([]);
  }
  expect(
    await clone.query(
      "SELECT n_distinct FROM pg_stats WHERE tablename = 'people' AND attname = 'name'",
    ),
  ).toEqual([{ n_distinct: 1 }]);
  await expectNothingLeft(ended, [clone.pid]);
});

test('rows of a prepared transaction neither hold up the onReady files nor escape them', async () => {
  await writePartsFile(
    at('all.sql'),
    "BEGIN;\nLOCK people;\nUPDATE people SET name = 'masked';\nCOMMIT;\n",
  );
  await source.primary.query(
    "BEGIN; INSERT INTO people VALUES (0, 'secret'); PREPARE TRANSACTION 'it''s'",
  );
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await source.primary.query("ROLLBACK PREPARED 'it''s'");
  });

  const ended = await runClone(source, {
    source: { onReady: [at('all.sql')] },
    target: { dataDirectory: at('prepared', 'main') },
    replica: detached,
  });

  expect(ended.error).toBeUndefined();
  expect(ended.result.result.warnings.join()).toContain('1 prepared transactions');
  await using clone = await adoptServer(at('prepared', 'main'));
  expect(await clone.query('SELECT DISTINCT name FROM people')).toEqual([{ name: 'masked' }]);
  expect(await clone.query('SELECT FROM pg_prepared_xacts')).toEqual([]);
});

test('a clone whose onReady file fails cannot be started, tells nothing of the rows, and makes room for the next or for what it replaced', async () => {
  await writePartsFile(
    at('failing.sql'),
    'ALTER TABLE people ADD PRIMARY KEY (id);\nINSERT INTO people VALUES (7);\n',
  );
  const spec = { target: { dataDirectory: at('unmasked', 'main') }, replica: detached };

  const ended = await runClone(source, { ...spec, source: { onReady: [at('failing.sql')] } });

  expect(ended.error).toMatchObject({
    code: 'ON_READY_FAILED',
    phase: 'publish',
    facts: {
      file: at('failing.sql'),
      exitStatus: 3,
      said: expect.stringContaining('duplicate key value violates unique constraint'),
    },
  });
  expect(ended.stderr).not.toContain('(id)=(7)');
  const quoting = 'SELECT name::int FROM people ORDER BY id;\n';
  await writePartsFile(at('quoting.sql'), quoting);
  const quoted = await runClone(source, { ...spec, source: { onReady: [at('quoting.sql')] } });
  expect(quoted.error).toMatchObject({
    facts: { said: `psql:${at('quoting.sql')}:1: ERROR:  22P02` },
  });
  expect(quoted.stderr).not.toContain('secret 1');
  await expect(startCluster(at('unmasked', 'main'))).rejects.toThrow('pg_control');
  await expectNothingLeft(ended);
  expect(
    (await runClone(source, { ...spec, replica: { role: 'detached' } })).error,
  ).toBeUndefined();

  const replacing = await runClone(source, {
    ...{ ...spec, target: { ...spec.target, ifExists: 'replace' } },
    source: { onReady: [at('failing.sql')] },
  });

  expect(replacing.error).toMatchObject({ code: 'ON_READY_FAILED' });
  await expectNothingLeft(replacing);
  await using former = await startCluster(at('unmasked', 'main'));
  await expect.poll(async () => await one(former, 'pg_is_in_recovery()').catch(String)).toBe(false);
});

test('an onReady file that leaves its transaction open fails, since it would have changed nothing', async () => {
  await writePartsFile(at('open.sql'), 'BEGIN;\nDELETE FROM people;\n');

  const ended = await runClone(source, {
    source: { onReady: [at('open.sql')] },
    target: { dataDirectory: at('open', 'main') },
    replica: detached,
  });

  expect(ended.error).toMatchObject({
    code: 'ON_READY_FAILED',
    facts: { said: expect.stringContaining('ends within a transaction') },
  });
  await expect(startCluster(at('open', 'main'))).rejects.toThrow('pg_control');
  await expectNothingLeft(ended);
});

test('a clone that was killed while its onReady files ran cannot be started, and makes room for the next', async () => {
  await writePartsFile(at('endless.sql'), 'SELECT pg_sleep(600);\n');
  const dataDirectory = at('killed', 'main');
  const running = await startClone(source, {
    source: { onReady: [at('endless.sql')] },
    target: { dataDirectory },
    replica: detached,
  });
  await running.reached('publish');
  await expect.poll(async () => await readdir(dataDirectory)).toContain('postmaster.pid');

  await running.process.stop('SIGKILL');
  await running.ended;

  await expect
    .poll(async () => await startCluster(dataDirectory).catch((error: unknown) => String(error)))
    .toContain('pgcloned: the onReady files of the source have not run in this clone');
  const next = await runClone(source, { target: { dataDirectory } });
  expect(next.error).toBeUndefined();
});

test('onReady files that others may write, and standbys of their source, are refused before anything is copied', async () => {
  await writePartsFile(at('open.sql'), 'SELECT 1;\n');
  await chmod(at('open.sql'), 0o666);
  await writePartsFile(at('closed.sql'), 'SELECT 1;\n');
  const spec = { target: { dataDirectory: at('refused', 'main') } };

  const [open, standby] = [
    await runClone(source, {
      ...spec,
      source: { onReady: [at('open.sql')] },
      replica: detached,
    }),
    await runClone(source, { ...spec, source: { onReady: [at('closed.sql')] } }),
  ];

  expect(open.error).toMatchObject({
    code: 'CONFIGURATION_INVALID',
    message: `onReady: ${at('open.sql')} may be written by others`,
    phase: 'preflight',
  });
  expect(standby.error).toMatchObject({
    code: 'NOT_SUPPORTED',
    message: expect.stringContaining('has onReady files, so its clones cannot be standbys'),
    phase: 'preflight',
  });
});

test('a standby beside its source has a port and a socket of its own', async () => {
  const ended = await runClone(source, {
    target: { dataDirectory: at('beside', 'main') },
    replica: { start: true, waitFor: 'streaming' },
  });

  expect(ended.error).toBeUndefined();
  await using standby = await adoptServer(at('beside', 'main'));
  expect(standby.port).not.toBe(source.primary.port);
  expect(ended.result.result.connectionString).toBe(
    `postgresql:///postgres?${new URLSearchParams({ host: at('beside', 'main'), port: String(standby.port) }).toString()}`,
  );
  expect(await one(standby, 'pg_is_in_recovery()')).toBe(true);
});

test('a standby beside its source is not started if a tablespace was created there since the copy', async () => {
  const running = await startClone(source, {
    target: { dataDirectory: at('shared', 'main') },
    replica: { start: true, waitFor: 'streaming' },
    // It is tried first, which leaves the time to create one.
    verification: { boot: true },
  });
  await running.reached('publish');
  await source.primary.createTablespace('late', at('late'));

  const ended = await running.ended;
  await source.primary.query('DROP TABLESPACE late');

  expect(ended.error).toMatchObject({
    code: 'SOURCE_CHANGED',
    phase: 'start-replica',
    facts: { tablespaces: 'late' },
  });
  await expectNothingLeft(ended);
});
