/**
 * Clusters that are not laid out as initdb leaves them: WAL, configuration and tablespaces elsewhere, access for the group,
 * names of any bytes, and everything in a data directory that must not be copied (R1.*).
 *
 * What is copied is compared with what PostgreSQL's own pg_basebackup takes from the same idle cluster.
 */
import { existsSync } from 'node:fs';
import {
  appendFile,
  mkdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import {
  adoptServer,
  compareTables,
  freePort,
  leftBehind,
  makeDirectory,
  runAsPartsUser,
  type Source,
  scratchDirectory,
  startSource,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runClone, startClone } from './run-clone.ts';

const owned = new AsyncDisposableStack();
let directory = '';

beforeAll(async () => {
  directory = owned.use(await scratchDirectory()).path;
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

const modeOf = async (path: string) => (await stat(path)).mode & 0o777;

describe('a source as on Debian, with access for the group and its WAL elsewhere,', () => {
  let source: Source;

  beforeAll(async () => {
    await makeDirectory(at('etc', 'conf.d'));
    await writePartsFile(at('etc', 'conf.d', '10-memory.conf'), "work_mem = '7MB'\n");
    await writePartsFile(at('etc', 'conf.d', '20-later.conf'), "include '../nested.conf'\n");
    await writePartsFile(at('etc', 'conf.d', '30-not.txt'), "work_mem = '9MB'\n");
    await writePartsFile(at('etc', 'conf.d', '.hidden.conf'), "work_mem = '9MB'\n");
    await writePartsFile(at('etc', 'nested.conf'), "temp_buffers = '11MB'\n");
    await writePartsFile(at('etc', 'readers'), 'reader, # one of them\n@more\n');
    await writePartsFile(at('etc', 'more'), '"another reader"\n');
    await makeDirectory(at('etc', 'hba.d'));
    await writePartsFile(at('etc', 'hba.d', 'site.conf'), 'host all site 127.0.0.2/32 trust\n');
    source = owned.use(
      await startSource({
        dataDirectory: at('debian', 'data'),
        configurationDirectory: at('etc'),
        walDirectory: at('debian', 'wal'),
        initdbArgs: ['--allow-group-access'],
        settings: {
          include_dir: 'conf.d',
          include_if_exists: 'missing.conf',
          external_pid_file: at('debian', 'pid'),
        },
      }),
    );
    await appendFile(
      at('etc', 'pg_hba.conf'),
      `local all @readers trust\n${source.primary.major < 16 ? '' : 'include_dir hba.d\n'}`,
    );
  });

  test('becomes a standby with that configuration, these modes and its WAL where it was asked for', async () => {
    const home = at('from debian');
    const port = await freePort();

    const { error, result, name } = await runClone(source, {
      target: { dataDirectory: join(home, 'main'), walDirectory: join(home, 'wal') },
      replica: { start: true, waitFor: 'streaming', port },
    });

    expect(error).toBeUndefined();
    await using standby = await adoptServer(join(home, 'main'));
    const settings = await standby.query<{ name: string; setting: string }>(
      'SELECT name, current_setting(name) AS setting FROM pg_settings WHERE name = ANY ($1)',
      [['work_mem', 'temp_buffers', 'config_file', 'hba_file', 'data_directory', 'port']],
    );
    expect(Object.fromEntries(settings.map((row) => [row.name, row.setting]))).toEqual({
      work_mem: '7MB',
      temp_buffers: '11MB',
      config_file: join(home, 'main', 'postgresql.conf'),
      hba_file: join(home, 'main', 'pg_hba.conf'),
      data_directory: join(home, 'main'),
      port: String(port),
    });
    expect(
      await standby.query(
        `SELECT user_name, error FROM pg_hba_file_rules
          WHERE user_name && '{reader,another reader,site}' OR error IS NOT NULL`,
      ),
    ).toEqual([
      { user_name: ['reader', 'another reader'], error: null },
      ...(standby.major < 16 ? [] : [{ user_name: ['site'], error: null }]),
    ]);
    expect(await readlink(join(home, 'main', 'pg_wal'))).toBe(join(home, 'wal'));
    for (const path of ['main', 'main/base', 'main/global', 'wal', 'wal/archive_status'])
      expect([path, await modeOf(join(home, path))]).toEqual([path, 0o750]);
    for (const path of ['main/PG_VERSION', 'main/global/pg_control', 'main/postgresql.auto.conf'])
      expect([path, await modeOf(join(home, path))]).toEqual([path, 0o640]);
    expect(result.result.warnings).toContainEqual(expect.stringContaining('external_pid_file'));
    const log = await readFile(join(home, 'main', 'pgcloned.start.log'), 'utf8');
    expect(log).not.toContain('external PID file');
    expect(
      await leftBehind({
        names: [name],
        servers: [source.primary],
        directories: [home, at('debian')],
        pidsKept: [standby.pid],
      }),
    ).toEqual([]);
  });
});

describe('a source with a path that a shell or rsync could take for something else', () => {
  let source: Source;
  /** PostgreSQL itself takes no single quote in the location of a tablespace. */
  const oddPath = '100% "mad"; $(touch x) #';

  beforeAll(async () => {
    source = owned.use(await startSource({ dataDirectory: at(oddPath, 'data') }));
    await source.primary.createTablespace('inside', join(source.primary.dataDirectory, 'inside'));
    await source.primary.createTablespace('out', at('out side'));
    for (const [table, tablespace] of [
      ['in_default', 'pg_default'],
      ['in_inside', 'inside'],
      ['in_out', 'out'],
    ])
      await source.primary.query(
        `CREATE TABLE ${String(table)} TABLESPACE ${String(tablespace)} AS SELECT generate_series(1, 1000) AS id`,
      );
  });

  test('is cloned into such a path, and a tablespace inside the data directory stays inside', async () => {
    const home = at("it's", oddPath);

    const { error, name } = await runClone(source, {
      target: {
        dataDirectory: join(home, 'main'),
        tablespaces: { [at('out side')]: join(home, 'out') },
      },
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    });

    expect(error).toBeUndefined();
    await using standby = await adoptServer(join(home, 'main'));
    await waitForReplay(source.primary, standby);
    expect(await compareTables(source.primary, standby)).toEqual([]);
    expect(
      await standby.query(
        `SELECT spcname, pg_tablespace_location(oid) AS location FROM pg_tablespace
          WHERE spcname IN ('inside', 'out') ORDER BY spcname`,
      ),
    ).toEqual([
      { spcname: 'inside', location: join(home, 'main', 'inside') },
      { spcname: 'out', location: join(home, 'out') },
    ]);
    expect(
      await leftBehind({
        names: [name],
        servers: [source.primary],
        directories: [home, source.primary.dataDirectory],
        pidsKept: [standby.pid],
      }),
    ).toEqual([]);
  });

  test('a standby with a tablespace inside its data directory can be replaced', async () => {
    const home = at("it's", oddPath);

    const { error } = await runClone(source, {
      target: {
        dataDirectory: join(home, 'main'),
        tablespaces: { [at('out side')]: join(home, 'out') },
        ifExists: 'replace',
      },
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    });

    expect(error).toBeUndefined();
    await using standby = await adoptServer(join(home, 'main'));
    await waitForReplay(source.primary, standby);
    expect(await compareTables(source.primary, standby)).toEqual([]);
    expect(await entriesOf(home, 1)).toEqual(['d main', 'd out']);
  });

  test('a tablespace that is made during the copy is missed at its end, and the next attempt says what it needs', async () => {
    const target = {
      dataDirectory: at('changed', 'main'),
      tablespaces: { [at('out side')]: at('changed', 'out') },
    };
    const running = await startClone(source, {
      target,
      transfer: { maxRate: 6_000_000, workers: 2 },
    });
    await running.copied(0.1);
    await source.primary.createTablespace('late', at('late'));

    const { error, status, messages, name } = await running.ended;

    await source.primary.query('DROP TABLESPACE late');
    expect(messages.join('\n')).toContain('tablespaces were created or dropped during the copy');
    expect(error).toMatchObject({
      code: 'TARGET_INVALID',
      phase: 'preflight',
      hint: expect.stringContaining(
        `map ${at('late')} to another directory with target.tablespaces`,
      ),
    });
    expect(status).toBe(7);
    expect(existsSync(join(target.dataDirectory, 'global', 'pg_control'))).toBe(false);
    expect(
      await leftBehind({
        names: [name],
        servers: [source.primary],
        directories: [at('changed')],
      }),
    ).toEqual([]);
  });

  test.each([
    {
      what: 'a link to a directory',
      plant: async (path: string) => {
        await symlink('/var/tmp', join(path, 'pg_xact.moved'));
        return async () => {
          await rm(join(path, 'pg_xact.moved'));
        };
      },
      message: 'the data directory contains symbolic links',
      facts: { links: 'pg_xact.moved', count: 1 },
      hint: 'Replace each by the file or directory it points to; only pg_wal and tablespaces may lie elsewhere.',
    },
    {
      what: 'a tablespace in place',
      plant: async () => {
        const { primary } = source;
        await primary.query('ALTER ROLE postgres SET allow_in_place_tablespaces = on');
        await primary.query("CREATE TABLESPACE in_place LOCATION ''");
        return async () => {
          await primary.query('DROP TABLESPACE in_place');
          await primary.query('ALTER ROLE postgres RESET allow_in_place_tablespaces');
        };
      },
      message: 'tablespace in_place lies in pg_tblspc itself',
      facts: { tablespace: 'in_place' },
      hint: "Drop the tablespace in_place: in-place tablespaces are made for developers' tests only.",
    },
  ])(
    '$what is refused, since it would be lost without a word',
    async ({ plant, message, facts, hint }) => {
      await using undo = new AsyncDisposableStack();
      undo.defer(await plant(source.primary.dataDirectory));
      const home = at('refused');

      const ended = await runClone(source, {
        target: {
          dataDirectory: join(home, 'main'),
          tablespaces: { [at('out side')]: join(home, 'out') },
        },
      });

      expect(ended.error).toMatchObject({
        code: 'SOURCE_LAYOUT_UNSUPPORTED',
        message,
        facts,
        hint,
      });
      expect(ended.status).toBe(7);
      expect(await leftBehind({ names: [ended.name], servers: [source.primary] })).toEqual([]);
    },
  );
});

describe('of an idle cluster with something of every kind in it', () => {
  let source: Source;
  let database = '';
  let clone = '';
  let backup = '';

  /** R1.2 and `log`: pg_basebackup takes them along, a clone has no use for them. */
  const ONLY_IN_BACKUP = [
    'backup_label.old',
    'backup_manifest.tmp',
    'current_logfiles',
    'log/server.log',
    'recovery.signal',
    'standby.signal',
    'tablespace_map.old',
  ];
  /** R1.1: at any depth. */
  const NOWHERE = [
    'pgsql_tmp.x',
    'pgsql_tmpdir/file',
    '.DS_Store',
    'postgresql.auto.conf.tmp',
    'current_logfiles.tmp',
    'pg_internal.init.4711',
    'backup_label',
    'tablespace_map',
    'backup_manifest',
    'postmaster.opts',
  ];
  /** R1.3: their directories arrive empty. */
  const EMPTIED = ['pg_stat_tmp', 'pg_dynshmem', 'pg_notify', 'pg_serial', 'pg_snapshots'];
  /** R6.6: rsync takes some of them for comments, options, patterns or ends of lines. */
  const ODD_NAMES = [
    '#x',
    ';y',
    ' z',
    'z ',
    '-n',
    '--delete',
    'a\nb',
    'a\rb',
    '*',
    '[a]',
    'back\\slash',
    '\\#012',
    '100%',
    '%d',
    'quo\'te"',
    'a:b',
    '..x',
    'ünï',
  ].map((name) => Buffer.from(name));
  const NOT_UTF8 = Buffer.from([0x66, 0xff, 0xfe, 0x80]);

  const odd = [...ODD_NAMES, NOT_UTF8];

  beforeAll(async () => {
    source = owned.use(
      await startSource({ settings: { autovacuum: 'off', bgwriter_lru_maxpages: '0' } }),
    );
    const { primary } = source;
    const { dataDirectory } = primary;
    await primary.createTablespace('fast', at('fast'));
    await primary.query('CREATE UNLOGGED TABLE unlogged (id int primary key, filler text)');
    await primary.query("INSERT INTO unlogged VALUES (1, repeat('x', 100000))");
    await primary.query('CREATE UNLOGGED TABLE unlogged_fast (id int) TABLESPACE fast');
    await primary.query('CREATE TABLE logged TABLESPACE fast AS SELECT 1 AS id');
    await primary.query("SELECT pg_create_physical_replication_slot('kept', true)");
    const [row] = await primary.query<{ oid: string; version: string }>(
      `SELECT oid::text, pg_ls_dir('pg_tblspc/' || (SELECT oid FROM pg_tablespace WHERE spcname = 'fast')) AS version
         FROM pg_database WHERE datname = 'postgres'`,
    );
    database = `base/${row?.oid ?? ''}`;
    const inFast = at('fast', row?.version ?? '', row?.oid ?? '');

    const put = async (path: string | Buffer, text = 'planted') => {
      await writeFile(path, text, { mode: 0o600 });
    };
    await mkdir(join(dataDirectory, 'log'));
    for (const name of ONLY_IN_BACKUP) await put(join(dataDirectory, name));
    for (const home of [dataDirectory, join(dataDirectory, database), inFast]) {
      await mkdir(join(home, 'pgsql_tmpdir'));
      for (const name of NOWHERE) await put(join(home, name));
      await put(join(home, 't123_456'));
      await put(join(home, 't123_456_fsm.1'));
    }
    await rm(join(dataDirectory, 't123_456'));
    await rm(join(dataDirectory, 't123_456_fsm.1'));
    for (const name of EMPTIED) await put(join(dataDirectory, name, 'x'));
    await mkdir(at('fast', 'PG_14_202107181'));
    await put(at('fast', 'PG_14_202107181', 'other version'));
    for (const name of odd) {
      const path = Buffer.concat([Buffer.from(`${dataDirectory}/`), name]);
      await put(path, `file ${name.toString('hex')}`);
      const folder = Buffer.concat([Buffer.from(`${dataDirectory}/folder `), name]);
      await mkdir(folder, { mode: 0o700 });
      await put(Buffer.concat([folder, Buffer.from('/'), name]), 'in a folder');
    }
    await runProcess(
      {
        file: 'chown',
        args: ['-R', '--reference', join(dataDirectory, 'PG_VERSION'), dataDirectory, at('fast')],
        env: {},
      },
      { signal: AbortSignal.timeout(60_000) },
    );
    await primary.query('CHECKPOINT');

    backup = at('backup', 'main');
    await runAsPartsUser([
      join(primary.binDirectory, 'pg_basebackup'),
      ...['-h', primary.socketDirectory, '-p', String(primary.port), '-U', 'postgres'],
      ...['-D', backup, '-T', `${at('fast')}=${at('backup', 'fast')}`],
      ...['-X', 'none', '-c', 'fast', '--no-manifest', '--no-sync'],
    ]);
    clone = at('clone', 'main');
    const { error } = await runClone(source, {
      target: { dataDirectory: clone, tablespaces: { [at('fast')]: at('clone', 'fast') } },
    });
    expect(error).toBeUndefined();
  });

  test('a clone has what a base backup has, less what no server needs, plus what makes it a standby', async () => {
    const inBackup = await entriesOf(backup);
    const inClone = await entriesOf(clone);

    const onlyInClone = inClone.filter((entry) => !inBackup.includes(entry));
    const onlyInBackup = inBackup.filter((entry) => !inClone.includes(entry));
    expect(onlyInClone.filter((entry) => !/^f (?:\.?pgcloned[.-]|pg_wal\/)/.test(entry))).toEqual([
      'f tablespace_map',
    ]);
    expect(onlyInBackup).toEqual(
      ONLY_IN_BACKUP.filter((name) => name !== 'standby.signal').map((name) => `f ${name}`),
    );
    expect(await readFile(join(clone, 'standby.signal'), 'utf8')).toBe('');
    const [versionOfClone, ...others] = (await entriesOf(at('clone', 'fast'), 1)).filter(
      (entry) => !entry.includes('pgcloned'),
    );
    expect([versionOfClone, ...others]).toEqual(await entriesOf(at('backup', 'fast'), 1));
    expect(
      (await entriesOf(at('clone', 'fast'))).filter((entry) => !entry.includes('pgcloned')),
    ).toEqual(await entriesOf(at('backup', 'fast')));
  });

  test('modes and sizes are those of a base backup', async () => {
    const differing = ['backup_label', 'postgresql.conf', 'postgresql.auto.conf', 'standby.signal'];
    const isComparable = (line: string) =>
      !differing.some((name) => line.startsWith(`${name} `)) && !/pgcloned|pg_wal\//.test(line);
    const inBackup = new Set(await filesOf(backup));

    const other = (await filesOf(clone)).filter((line) => !inBackup.has(line));

    expect(other.filter(isComparable)).toEqual([expect.stringMatching(/^tablespace_map /)]);
  });

  test('no file of an excluded class arrives, wherever it lies', async () => {
    const everything = [...(await entriesOf(clone)), ...(await entriesOf(at('clone', 'fast')))];

    const planted = [...NOWHERE.filter((name) => !/^(?:backup_label|tablespace_map)$/.test(name))];
    for (const name of [...planted, 't123_456', 't123_456_fsm.1', 'other version', 'kept'])
      expect(
        everything.filter((entry) => entry.endsWith(`/${name}`) || entry === `f ${name}`),
      ).toEqual([]);
    expect(everything.filter((entry) => /\/(?:backup_label|tablespace_map)$/.test(entry))).toEqual(
      [],
    );
    for (const name of [...EMPTIED, 'pg_replslot', 'pg_subtrans'])
      expect(everything.filter((entry) => entry.includes(` ${name}`))).toEqual([`d ${name}`]);
  });

  test('of an unlogged table with index and TOAST only the init forks arrive', async () => {
    const { primary } = source;
    const paths = await primary.query<{ path: string }>(
      `SELECT pg_relation_filepath(oid) AS path FROM pg_class WHERE relpersistence = 'u'`,
    );
    const everything = await entriesOf(clone);

    expect(paths.length).toBeGreaterThanOrEqual(5);
    for (const { path } of paths.filter((one) => one.path.startsWith('base/')))
      expect(everything.filter((entry) => entry.startsWith(`f ${path}`))).toEqual([
        `f ${path}_init`,
      ]);
  });

  test.each(odd.map((name) => ({ name, shown: JSON.stringify(name.toString('latin1')) })))(
    'a file and a directory called $shown arrive',
    async ({ name }) => {
      const top = Buffer.concat([Buffer.from(`${clone}/`), name]);
      const below = Buffer.concat([Buffer.from(`${clone}/folder `), name, Buffer.from('/'), name]);

      expect(await readFile(top, 'utf8')).toBe(`file ${name.toString('hex')}`);
      expect(await readFile(below, 'utf8')).toBe('in a folder');
    },
  );
});

/** `TYPE NAME` of everything below, sorted; names as latin1, since they may be any bytes. */
async function entriesOf(path: string, depthMax = 100): Promise<string[]> {
  return await find(path, depthMax, '%y %P\\0');
}

/** `NAME MODE SIZE` of every file. */
async function filesOf(path: string): Promise<string[]> {
  return await find(path, 100, '%P %m %s\\0', '-type', 'f');
}

async function find(
  path: string,
  depthMax: number,
  format: string,
  ...tests: readonly string[]
): Promise<string[]> {
  const { stdout } = await runProcess(
    {
      file: 'find',
      args: [path, '-mindepth', '1', '-maxdepth', String(depthMax), ...tests, '-printf', format],
      env: {},
    },
    { signal: AbortSignal.timeout(60_000) },
  );
  return stdout.toString('latin1').split('\0').slice(0, -1).toSorted();
}
