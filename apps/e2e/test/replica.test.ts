/**
 * What becomes of a published clone: its configuration, its slot, who starts it, and what is waited for.
 */
import { existsSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  freePort,
  leftBehind,
  type PostgresServer,
  type Source,
  scratchDirectory,
  startCluster,
  startSource,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Ended, runClone, startClone } from './run-clone.ts';

/** Of a network for documentation (RFC 5737): no host has it. */
const NOBODYS_ADDRESS = '192.0.2.1';

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(await startSource({ listen: `127.0.0.1, ${NOBODYS_ADDRESS}` }));
  directory = owned.use(await scratchDirectory()).path;
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

async function settingsOf(server: PostgresServer, names: readonly string[]) {
  const rows = await server.query<{ name: string; value: string }>(
    'SELECT name, current_setting(name) AS value FROM pg_settings WHERE name = ANY ($1)',
    [names],
  );
  return Object.fromEntries(rows.map(({ name, value }) => [name, value]));
}

async function expectNothingLeft(
  { name }: Pick<Ended, 'name'>,
  home: string,
  kept: { readonly slots?: readonly string[]; readonly pids?: readonly number[] } = {},
): Promise<void> {
  expect(
    await leftBehind({
      names: [name],
      servers: [source.primary],
      directories: [at(home)],
      slotsKept: kept.slots ?? [],
      pidsKept: kept.pids ?? [],
    }),
  ).toEqual([]);
}

async function configurationWith(
  name: string,
  worker: Readonly<Record<string, unknown>>,
): Promise<string> {
  const path = at(`${name}.yaml`);
  await writePartsFile(path, JSON.stringify({ worker }));
  return path;
}

test('what the source has in its settings cannot keep the clone from being a harmless standby', async () => {
  const harmful = {
    archive_mode: 'always',
    archive_command: 'touch /somewhere',
    restore_command: 'false',
    recovery_target_time: '2020-01-01 00:00:00+00',
    recovery_min_apply_delay: '1h',
    primary_slot_name: 'of_somebody_else',
    primary_conninfo: 'host=nowhere',
    cluster_name: 'the source',
    hba_file: '/somewhere/pg_hba.conf',
  };
  for (const [name, value] of Object.entries(harmful))
    await source.primary.query(`ALTER SYSTEM SET ${name} = '${value}'`);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    await source.primary.query('ALTER SYSTEM RESET ALL');
  });

  const ended = await runClone(source, {
    target: { dataDirectory: at('harmless', 'main') },
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });

  expect(ended.error).toBeUndefined();
  await using standby = await adoptServer(at('harmless', 'main'));
  expect(
    await settingsOf(standby, [
      'archive_mode',
      'hba_file',
      'listen_addresses',
      'primary_slot_name',
      'recovery_min_apply_delay',
      'recovery_target_time',
      'restore_command',
    ]),
  ).toEqual({
    archive_mode: 'off',
    hba_file: at('harmless', 'main', 'pg_hba.conf'),
    listen_addresses: 'localhost, 127.0.0.1',
    primary_slot_name: '',
    recovery_min_apply_delay: '0',
    recovery_target_time: '',
    restore_command: '',
  });
  const { cluster_name: clusterName, primary_conninfo: conninfo } = await settingsOf(standby, [
    'cluster_name',
    'primary_conninfo',
  ]);
  expect(clusterName).not.toBe(harmful.cluster_name);
  expect(conninfo).not.toContain(source.password);
  expect(ended.result.result.warnings).toContainEqual(
    `listen_addresses of the source (127.0.0.1, ${NOBODYS_ADDRESS}) cannot work here; it is 'localhost, 127.0.0.1' instead`,
  );
  const original = at('harmless', 'main', 'pgcloned.postgresql.auto.conf.original');
  for (const name of Object.keys(harmful))
    expect(await readFile(original, 'utf8')).toContain(`${name} = `);
  await expectNothingLeft(ended, 'harmless', { pids: [standby.pid] });
});

test('what the configuration in the data directory includes from elsewhere comes with it', async () => {
  const config = join(source.primary.dataDirectory, 'postgresql.conf');
  const original = await readFile(config, 'utf8');
  await writePartsFile(at('of the site.conf'), "work_mem = '7MB'\n");
  await writePartsFile(join(source.primary.dataDirectory, 'more.conf'), "temp_buffers = '11MB'\n");
  await writePartsFile(
    config,
    `${original}\ninclude '${at('of the site.conf')}'\nINCLUDE more.conf\n`,
  );
  await source.primary.query('SELECT pg_reload_conf()');

  const { error } = await runClone(source, { target: { dataDirectory: at('includes', 'main') } });
  await writePartsFile(config, original);
  await rm(at('of the site.conf'));

  expect(error).toBeUndefined();
  await using standby = await startCluster(at('includes', 'main'));
  expect(await settingsOf(standby, ['work_mem', 'temp_buffers'])).toEqual({
    work_mem: '7MB',
    temp_buffers: '11MB',
  });
});

test('settings, port and cluster name are those of the request', async () => {
  const port = await freePort();

  const ended = await runClone(source, {
    target: { dataDirectory: at('named', 'main') },
    replica: {
      start: true,
      waitFor: 'streaming',
      port,
      clusterName: "it's mine",
      settings: { work_mem: '5MB', max_connections: 70, jit: false },
    },
  });

  expect(ended.error).toBeUndefined();
  expect(ended.result.instance).toMatchObject({ state: 'running', port });
  await using standby = await adoptServer(at('named', 'main'));
  expect(
    await settingsOf(standby, ['work_mem', 'max_connections', 'jit', 'port', 'cluster_name']),
  ).toEqual({
    work_mem: '5MB',
    max_connections: '70',
    jit: 'off',
    port: String(port),
    cluster_name: "it's mine",
  });
  expect(
    await source.primary.query('SELECT application_name, state FROM pg_stat_replication'),
  ).toEqual([{ application_name: "it's mine", state: 'streaming' }]);
});

test('the slot that was asked for is there, and the standby streams from it', async () => {
  const ended = await runClone(source, {
    target: { dataDirectory: at('slot', 'main') },
    replica: { start: true, waitFor: 'streaming', port: await freePort(), slot: 'its_own' },
  });

  expect(ended.error).toBeUndefined();
  {
    await using standby = await adoptServer(at('slot', 'main'));
    expect(
      await source.primary.query(
        'SELECT slot_name, slot_type, temporary, active, restart_lsn IS NOT NULL AS keeps FROM pg_replication_slots',
      ),
    ).toEqual([
      { slot_name: 'its_own', slot_type: 'physical', temporary: false, active: true, keeps: true },
    ]);
    expect(await settingsOf(standby, ['primary_slot_name'])).toEqual({
      primary_slot_name: 'its_own',
    });
    await expectNothingLeft(ended, 'slot', { slots: ['its_own'], pids: [standby.pid] });
  }
  await expect
    .poll(async () => await source.primary.query('SELECT active FROM pg_replication_slots'))
    .toEqual([{ active: false }]);
  await source.primary.query("SELECT pg_drop_replication_slot('its_own')");
});

test('a slot that somebody else makes under the same name during the copy is refused, and never dropped', async () => {
  const slots = async () =>
    await source.primary.query('SELECT slot_name FROM pg_replication_slots WHERE NOT temporary');
  const spec = { target: { dataDirectory: at('theirs', 'main') }, replica: { slot: 'theirs' } };
  const running = await startClone(source, {
    ...spec,
    transfer: { maxRate: 6_000_000, workers: 2 },
  });
  await running.reached('copy-files');
  await source.primary.query("SELECT pg_create_physical_replication_slot('theirs', true)");

  for (const { error, status } of [await running.ended, await runClone(source, spec)]) {
    expect(status).not.toBe(0);
    expect(error).toMatchObject({
      code: 'SOURCE_SETTINGS_UNSUITABLE',
      message: 'replication slot theirs exists already',
      hint: expect.stringContaining("pg_drop_replication_slot('theirs')"),
    });
    expect(await slots()).toEqual([{ slot_name: 'theirs' }]);
  }
  await source.primary.query("SELECT pg_drop_replication_slot('theirs')");
});

test('a start command that fails ends the clone with its log, drops the slot, and leaves the clone to be started', async () => {
  const config = await configurationWith('failing', {
    start: { command: ['sh', '-c', 'echo nothing works >&2; exit 3'] },
  });

  const ended = await runClone(
    source,
    {
      target: { dataDirectory: at('failing', 'main') },
      replica: { start: true, waitFor: 'streaming', port: await freePort(), slot: 'its_own' },
    },
    { arguments: ['--config', config] },
  );

  expect(ended.error).toMatchObject({
    code: 'REPLICA_START_FAILED',
    phase: 'start-replica',
    message: 'sh did not start the server',
    hint: expect.stringContaining(`start the server on ${at('failing', 'main')}`),
    facts: { exitStatus: 3, log: 'nothing works' },
  });
  expect(ended.status).toBe(8);
  expect(ended.messages.join('\n')).toContain(
    "SELECT pg_create_physical_replication_slot('its_own', true)",
  );
  await expectNothingLeft(ended, 'failing');
  await using standby = await startCluster(at('failing', 'main'));
  expect(await standby.query('SELECT pg_is_in_recovery() AS standby')).toEqual([{ standby: true }]);
});

test('a start command gets directory, port and major version', async () => {
  const port = await freePort();
  const { binDirectory, major } = source.primary;
  const config = await configurationWith('command', {
    start: {
      command: [
        'sh',
        '-c',
        'echo "$@" && exec "$0/pg_ctl" start -w -D "$1" -l "$1/by-command.log"',
        binDirectory,
        '{dataDirectory}',
        '{port}',
        'PG{major}',
      ],
    },
  });

  const ended = await runClone(
    source,
    {
      target: { dataDirectory: at('com mand', 'main') },
      replica: { start: true, waitFor: 'streaming', port },
    },
    { arguments: ['--config', config] },
  );

  expect(ended.error).toBeUndefined();
  await using standby = await adoptServer(at('com mand', 'main'));
  expect(standby.port).toBe(port);
  expect(existsSync(at('com mand', 'main', 'by-command.log'))).toBe(true);
  expect(await readFile(at('com mand', 'main', 'pgcloned.start.log'), 'utf8')).toContain(
    `${at('com mand', 'main')} ${String(port)} PG${String(major)}`,
  );
  await expectNothingLeft(ended, 'com mand', { pids: [standby.pid] });
});

test('a clone that waits for consistency needs no stream', async () => {
  const ended = await runClone(source, {
    target: { dataDirectory: at('consistent', 'main') },
    replica: { start: true, waitFor: 'consistent', port: await freePort() },
  });

  expect(ended.error).toBeUndefined();
  await using standby = await adoptServer(at('consistent', 'main'));
  expect(await standby.query('SELECT pg_is_in_recovery() AS standby')).toEqual([{ standby: true }]);
  await expectNothingLeft(ended, 'consistent', { pids: [standby.pid] });
});

test('without start the source keeps the WAL until somebody else has started the replica', async () => {
  const running = await startClone(source, {
    target: { dataDirectory: at('held', 'main') },
    replica: { waitFor: 'streaming', hold: 60 },
  });
  await running.reached('start-replica');
  const pins = await source.primary.query(
    'SELECT slot_name, temporary FROM pg_replication_slots WHERE restart_lsn IS NOT NULL',
  );
  await using standby = await startCluster(at('held', 'main'));

  const ended = await running.ended;

  expect(pins).toEqual([{ slot_name: `${ended.name}_1`, temporary: true }]);
  expect(ended.error).toBeUndefined();
  expect(await standby.query('SELECT status FROM pg_stat_wal_receiver')).toEqual([
    { status: 'streaming' },
  ]);
  await expectNothingLeft(ended, 'held', { pids: [standby.pid] });
});

test('a replica that nobody starts within the hold ends the clone, which stays complete', async () => {
  const ended = await runClone(source, {
    target: { dataDirectory: at('alone', 'main') },
    replica: { waitFor: 'streaming', hold: 1 },
  });

  expect(ended.error).toMatchObject({
    code: 'REPLICA_START_FAILED',
    phase: 'start-replica',
    message: 'nobody started the replica for streaming',
    hint: expect.stringContaining('Start it soon, or ask for start: true.'),
    facts: { holdSeconds: 1 },
  });
  expect(ended.status).toBe(8);
  await expectNothingLeft(ended, 'alone');
  await using standby = await startCluster(at('alone', 'main'));
  expect(await standby.query('SELECT pg_is_in_recovery() AS standby')).toEqual([{ standby: true }]);
});

test('a cancel that comes after the publication lets go of the source and leaves the clone', async () => {
  const running = await startClone(source, {
    target: { dataDirectory: at('late', 'main') },
    replica: { waitFor: 'streaming', hold: 60 },
  });
  await running.reached('start-replica');
  await running.process.stop('SIGTERM');

  const ended = await running.ended;

  expect(ended.error).toMatchObject({ code: 'CANCELLED', phase: 'start-replica' });
  expect(ended.status).toBe(130);
  await expectNothingLeft(ended, 'late');
  await using standby = await startCluster(at('late', 'main'));
  expect(await standby.query('SELECT pg_is_in_recovery() AS standby')).toEqual([{ standby: true }]);
});
