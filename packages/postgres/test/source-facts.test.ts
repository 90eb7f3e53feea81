/** What the source says of itself, and what is found when rights, slots or WAL senders are missing. */
import { join } from 'node:path';
import {
  makeDirectory,
  type PostgresServer,
  runAsPartsUser,
  scratchDirectory,
  startPrimary,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  checkCollations,
  checkSource,
  openSession,
  readSourceFacts,
  readTablespaces,
  type SourceFacts,
} from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const nothing = {
  ...{ slot: false, replicaSlot: false, standbyName: 'replica-1' },
  walSenders: 2,
} as const;

let server: PostgresServer;
beforeAll(async () => {
  server = await startPrimary();
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

async function factsOf(
  from: PostgresServer,
  more: Parameters<typeof connectionTo>[1] = {},
): Promise<SourceFacts> {
  await using session = await openSession(connectionTo(from, more), {
    applicationName: 'facts',
    signal,
  });
  return await readSourceFacts(session, signal);
}

test('the facts are those of the cluster', async () => {
  const { stdout } = await runAsPartsUser([
    join(server.binDirectory, 'pg_controldata'),
    server.dataDirectory,
  ]);
  const said = (label: string) =>
    new RegExp(`^${label}: +(.*)$`, 'm').exec(stdout.toString())?.[1] ?? '';
  const catalogVersion = said('Catalog version number');

  const facts = await factsOf(server);

  expect(facts).toMatchObject({
    major: server.major,
    systemIdentifier: said('Database system identifier'),
    timeline: 1,
    tablespaceDirectoryName: `PG_${String(server.major)}_${catalogVersion}`,
    inRecovery: false,
    startedAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/),
    dataDirectory: server.dataDirectory,
    dataDirectoryMode: 0o700,
    configFiles: {
      configFile: server.configFile,
      hbaFile: join(server.dataDirectory, 'pg_hba.conf'),
      identFile: join(server.dataDirectory, 'pg_ident.conf'),
    },
    port: server.port,
    walSegmentBytes: 16 * 1024 * 1024,
    dataChecksums: true,
    walLevel: 'replica',
    fullPageWrites: true,
    archiveMode: 'off',
    synchronousStandbyNames: '',
    maxSlotWalKeepBytes: null,
    idleSlotTimeoutMs: null,
    walSendersFree: 10,
    slotsFree: 10,
    tablespaces: [],
    settings: expect.objectContaining({ max_connections: '60', max_wal_senders: '10' }),
    database: 'postgres',
    user: 'postgres',
    rights: { replication: true, backupStart: true, backupStop: true, monitor: true },
  });
  expect(facts.databaseBytes).toBeGreaterThan(20_000_000);
  expect(facts.databaseBytes).toBeLessThan(100_000_000);
});

test('a fit source has no findings', async () => {
  const facts = await factsOf(server);

  expect(checkSource(facts, { ...nothing, slot: true, replicaSlot: true })).toEqual({
    errors: [],
    warnings: [],
  });
});

test('sizes and modes other than the default are told in bytes and as chmod takes them', async () => {
  await using other = await startPrimary({
    initdbArgs: ['--allow-group-access', '--wal-segsize=1'],
    settings: { max_slot_wal_keep_size: '3MB' },
  });

  expect(await factsOf(other)).toMatchObject({
    dataDirectoryMode: 0o750,
    walSegmentBytes: 1024 * 1024,
    maxSlotWalKeepBytes: 3 * 1024 * 1024,
  });
});

test('tablespaces come with location and size, blanks, backslashes and line breaks included', async () => {
  await using other = await startPrimary();
  await using scratch = await scratchDirectory();
  const location = join(scratch.path, ' a b\\c\nd é');
  await makeDirectory(location);
  await other.createTablespace('odd', location);
  await other.query('CREATE TABLE t TABLESPACE odd AS SELECT generate_series(1, 10000)');

  const { tablespaces } = await factsOf(other);

  expect(tablespaces).toEqual([
    { oid: expect.stringMatching(/^\d+$/), name: 'odd', location, bytes: expect.any(Number) },
  ]);
  expect(tablespaces[0]?.bytes).toBeGreaterThan(300_000);
  await using session = await openSession(connectionTo(other), {
    applicationName: 'facts',
    signal,
  });
  const again = await readTablespaces(session, signal);
  expect(again).toEqual([{ oid: tablespaces[0]?.oid, name: 'odd', location }]);
});

test('a role without rights gets every grant that it lacks, and running them makes it fit', async () => {
  await server.query('CREATE ROLE "Clo ner" LOGIN');

  const before = await factsOf(server, { user: 'Clo ner' });
  const { errors } = checkSource(before, nothing);

  expect(before).toMatchObject({
    dataDirectory: '',
    databaseBytes: null,
    rights: { replication: false, backupStart: false, backupStop: false, monitor: false },
  });
  expect(errors.map(({ code }) => code)).toEqual(Array(4).fill('SOURCE_RIGHTS_MISSING'));
  expect(errors.map(({ facts }) => facts.grant)).toEqual([
    'ALTER ROLE "Clo ner" REPLICATION;',
    'GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO "Clo ner";',
    'GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO "Clo ner";',
    'GRANT pg_monitor TO "Clo ner";',
  ]);
  for (const { facts, hint } of errors) {
    expect(hint).toContain(`in database postgres of the source: ${String(facts.grant)}`);
    await server.query(String(facts.grant));
  }
  const after = await factsOf(server, { user: 'Clo ner' });
  expect(checkSource(after, nothing).errors).toEqual([]);
  expect(after.dataDirectory).toBe(server.dataDirectory);
});

test.each([
  ['ALTER ROLE cloner NOREPLICATION', 'ALTER ROLE cloner REPLICATION;'],
  [
    'REVOKE EXECUTE ON FUNCTION pg_backup_start(text, boolean) FROM cloner',
    'GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO cloner;',
  ],
  [
    'REVOKE EXECUTE ON FUNCTION pg_backup_stop(boolean) FROM cloner',
    'GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO cloner;',
  ],
  ['REVOKE pg_monitor FROM cloner', 'GRANT pg_monitor TO cloner;'],
])('after %s the only finding is %s', async (revoke, grant) => {
  await server.query('CREATE ROLE cloner LOGIN REPLICATION IN ROLE pg_monitor');
  try {
    await server.query('GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO cloner');
    await server.query('GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO cloner');
    await server.query(revoke);

    const { errors } = checkSource(await factsOf(server, { user: 'cloner' }), nothing);

    expect(errors.map(({ facts }) => facts.grant)).toEqual([grant]);
  } finally {
    await server.query('DROP OWNED BY cloner');
    await server.query('DROP ROLE cloner');
  }
});

test('settings that rule a clone out are named with what mends them', async () => {
  await using minimal = await startPrimary({
    settings: { wal_level: 'minimal', max_wal_senders: '0', max_replication_slots: '0' },
  });

  const { errors, warnings } = checkSource(await factsOf(minimal), {
    ...nothing,
    slot: true,
    replicaSlot: true,
  });

  expect(errors.map(({ code, hint }) => [code, hint])).toEqual([
    ['SOURCE_SETTINGS_UNSUITABLE', expect.stringContaining("SET wal_level = 'replica';")],
    ['SOURCE_NO_WAL_SENDER', expect.stringContaining('SET max_wal_senders = 2;')],
    ['SOURCE_SETTINGS_UNSUITABLE', expect.stringContaining('SET max_replication_slots = 2;')],
  ]);
  expect(warnings).toEqual([expect.objectContaining({ code: 'NO_SLOT_FREE' })]);
});

test('WAL senders are asked for only by those who stream, and a name only by a standby', async () => {
  const facts = { ...(await factsOf(server)), walSendersFree: 0, synchronousStandbyNames: '*' };
  const codesOf = (wanted: Partial<Parameters<typeof checkSource>[1]>, walSendersFree = 0) => {
    const found = checkSource({ ...facts, walSendersFree }, { ...nothing, ...wanted });
    return [...found.errors, ...found.warnings].map(({ code }) => code);
  };

  expect(codesOf({ walSenders: 0, standbyName: null })).toEqual([]);
  expect(codesOf({ walSenders: 1, standbyName: null })).toEqual(['SOURCE_NO_WAL_SENDER']);
  expect(codesOf({ walSenders: 1, standbyName: 'a' }, 1)).toEqual(['STANDBY_SYNCHRONOUS']);
  expect(codesOf({ walSenders: 2, standbyName: null }, 1)).toEqual(['FEW_WAL_SENDERS']);
});

test('a missing slot for the pin alone is a warning', async () => {
  const facts = { ...(await factsOf(server)), slotsFree: 0 };

  const { errors, warnings } = checkSource(facts, { ...nothing, slot: true, replicaSlot: false });

  expect(errors).toEqual([]);
  expect(warnings).toEqual([expect.objectContaining({ code: 'NO_SLOT_FREE' })]);
});

test('one slot does not do for the pin and the standby together', async () => {
  const facts = { ...(await factsOf(server)), slotsFree: 1 };

  expect(checkSource(facts, { ...nothing, slot: false, replicaSlot: true }).errors).toEqual([]);
  expect(checkSource(facts, { ...nothing, slot: true, replicaSlot: true }).errors).toMatchObject([
    { code: 'SOURCE_SETTINGS_UNSUITABLE', facts: { free: 1, wanted: 2 } },
  ]);
});

test('an in-place tablespace and a path that is not UTF-8 are refused by name', async () => {
  const facts = await factsOf(server);
  const tablespace = { oid: '1', bytes: 0 };

  const { errors } = checkSource(
    {
      ...facts,
      tablespaces: [
        { ...tablespace, name: 'here', location: 'pg_tblspc/1' },
        { ...tablespace, name: 'latin', location: '/srv/caf\ufffd' },
      ],
    },
    nothing,
  );

  expect(errors.map(({ code, facts: seen }) => [code, seen])).toEqual([
    ['SOURCE_LAYOUT_UNSUPPORTED', { path: '/srv/caf\ufffd' }],
    ['SOURCE_LAYOUT_UNSUPPORTED', { tablespace: 'here' }],
  ]);
});

test('a source that takes any standby for a synchronous one is a warning', async () => {
  const facts = { ...(await factsOf(server)), synchronousStandbyNames: 'ANY 1 (*)' };

  expect(checkSource(facts, nothing).warnings).toEqual([
    expect.objectContaining({
      code: 'STANDBY_SYNCHRONOUS',
      message: expect.stringContaining('(*)'),
    }),
  ]);
});

test('names of standbys stay what they are where a star gives way to them', async () => {
  const facts = {
    ...(await factsOf(server)),
    synchronousStandbyNames: 'FIRST 1 ("a, *b", *)',
    synchronousStandbys: ['first', 'x$&y', 'say "so"'],
  };
  const [finding] = checkSource(facts, nothing).warnings;
  const narrowed = 'FIRST 1 ("a, *b", "first", "x$&y", "say ""so""")';

  await server.query(finding?.remedies?.[0]?.text ?? '');

  await server.query('SELECT pg_reload_conf()');
  await expect
    .poll(async () => await server.query('SHOW synchronous_standby_names'))
    .toEqual([{ synchronous_standby_names: narrowed }]);
  await server.query('ALTER SYSTEM RESET synchronous_standby_names');
  await server.query('SELECT pg_reload_conf()');
});

test('a standby is a source like a primary, but its grants come from there and nobody waits for its standbys', async () => {
  const facts = {
    ...(await factsOf(server)),
    inRecovery: true,
    synchronousStandbyNames: '*',
  };
  const { rights } = facts;

  expect(checkSource(facts, nothing)).toEqual({ errors: [], warnings: [] });
  expect(
    checkSource({ ...facts, rights: { ...rights, monitor: false } }, nothing).errors,
  ).toMatchObject([
    {
      code: 'SOURCE_RIGHTS_MISSING',
      hint: expect.stringContaining('of the primary of the source'),
    },
  ]);
});

test('another C library than that of the source is a warning, and ICU is named as not compared', async () => {
  const facts = await factsOf(server);
  const collation = { recorded: '2.36', actual: '2.36' };
  const databases = [
    { ...collation, name: 'order', provider: 'c' },
    { ...collation, name: 'letters', provider: 'i' },
    { name: 'plain', provider: 'c', recorded: null, actual: null },
  ];

  expect(checkCollations({ ...facts, databases, collations: [] }, '2.36')).toMatchObject([
    { code: 'NOT_CHECKED', message: expect.stringContaining('letters (ICU 2.36)') },
  ]);
  expect(checkCollations({ ...facts, databases, collations: [] }, '2.41')).toMatchObject([
    {
      code: 'COLLATION_DIFFERS',
      facts: { source: '2.36', host: '2.41' },
      remedies: [
        { on: 'host', where: 'order', text: 'REINDEX DATABASE "order";' },
        { on: 'host', where: 'order', text: 'ALTER DATABASE "order" REFRESH COLLATION VERSION;' },
      ],
    },
    { code: 'NOT_CHECKED' },
  ]);
});

test('a timeout that would drop the slot of a standby before it is started is a warning', async () => {
  const facts = { ...(await factsOf(server)), idleSlotTimeoutMs: 300_000 };

  expect(checkSource(facts, { ...nothing, slot: true }).warnings).toEqual([]);
  expect(checkSource(facts, { ...nothing, replicaSlot: true }).warnings).toMatchObject([
    {
      code: 'SLOT_TIMEOUT_SHORT',
      remedies: [
        { kind: 'sql', text: "ALTER SYSTEM SET idle_replication_slot_timeout = '1h';" },
        { kind: 'sql', text: 'SELECT pg_reload_conf();' },
      ],
    },
  ]);
});
