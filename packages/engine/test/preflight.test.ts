/**
 * Everything that a preflight finds, provoked on real servers; and what it prints, applied as printed, makes it go away.
 *
 * What can stand beside each other is provoked together, because a preflight finds it all at once.
 */
import {
  appendFile,
  chmod,
  copyFile,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  CloneSpec,
  type Finding,
  Finding as FindingSchema,
  NOTICES,
  type PreflightReport,
  type Remedy,
  SourceConfiguration,
} from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import {
  asPartsUser,
  freePort,
  makeDirectory,
  mountFilesystem,
  partsEnvironment,
  runsAsRoot,
  type Source,
  type SshServer,
  scratchDirectory,
  startSource,
  startSshd,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { type ClonePlan, runPreflight } from '../src/index.ts';

const { signal } = new AbortController();
const owned = new AsyncDisposableStack();

const POSTGRES_BIN = process.env.TESTBED_POSTGRES_BIN ?? '/usr/lib/postgresql/{major}/bin';

/** Nobody else on this machine is given ports from there on just now. */
const firstPort = await freePort();

/** What is asked for, as a provocation or a remedy may change it. */
interface Wish {
  readonly request: Record<string, unknown>;
  readonly source: Record<string, unknown>;
  /** Of the configuration of the worker. */
  readonly host: Record<string, unknown>;
}

interface Stage {
  readonly source: Source;
  readonly sshd: SshServer;
  /** Programs that the source host finds before its own. */
  readonly programs: string;
  /** The only data root. */
  readonly root: string;
}

interface Scene {
  readonly what: string;
  readonly code: Finding['code'];
  readonly saying: string;
  readonly provoke: (stage: Stage) => Promise<Partial<Wish> | undefined>;
  /** Puts away what would stand in the way of the next batch. */
  readonly undo?: (stage: Stage) => Promise<unknown>;
  /** Where no command can know what is to be done. */
  readonly byHand?: (stage: Stage) => Promise<Partial<Wish> | undefined>;
}

let created = 0;

async function openStage(settings: Record<string, string>): Promise<Stage> {
  const scratch = owned.use(await scratchDirectory()).path;
  const [programs, root] = [join(scratch, 'programs'), join(scratch, 'data')];
  await makeDirectory(programs);
  await makeDirectory(root);
  const source = owned.use(await startSource({ settings }));
  const sshd = owned.use(await startSshd({ settings: [`SetEnv PATH=${programs}:/usr/bin:/bin`] }));
  return { source, sshd, programs, root };
}

function wishOf({ source, sshd, root }: Stage): Wish {
  const { user, port, privateKeyFile, knownHostsFile } = sshd;
  return {
    request: {
      source: { name: 'orders' },
      target: { host: 'here', dataDirectory: join(root, 'orders', 'main') },
    },
    source: {
      ...source.configuration,
      ssh: { user, port, privateKeyFile, knownHostsFile },
    },
    host: {},
  };
}

async function look(wish: Wish, { root }: Stage): Promise<PreflightReport> {
  created += 1;
  const { source: _, ...spec } = CloneSpec.parse(wish.request);
  const plan: ClonePlan = {
    id: created.toString(16).padStart(32, '0'),
    attempt: 1,
    begunFrom: null,
    originClone: null,
    isProtected: () => Promise.resolve(false),
    spec,
    sourceName: 'orders',
    source: SourceConfiguration.parse(wish.source),
    password: null,
    host: {
      dataRoots: [root],
      postgresBin: POSTGRES_BIN,
      start: { method: 'pg_ctl' },
      allowedSettings: [],
      stallMs: 10_000,
      noSpaceMs: 0,
      leaseMs: 15_000,
      ports: { first: firstPort, last: firstPort + 99 },
      protectedPaths: [],
      defaultSshKeyFiles: [],
      defaultKnownHostsFiles: [],
      sshAgentSocket: null,
      ...wish.host,
    },
    keepTemporary: false,
  };
  return await runPreflight(plan, { signal });
}

/** Does what it says, where it says, and nothing else. */
async function apply(remedy: Remedy, wish: Wish, stage: Stage): Promise<Wish> {
  const { kind, where, text } = remedy;
  const { primary } = stage.source;
  switch (kind) {
    case 'sql':
      await primary.query(text, [], where ?? 'postgres');
      return wish;
    case 'shell': {
      const path = `${stage.programs}:${primary.binDirectory}:/usr/bin:/bin`;
      const [file = '', ...args] = asPartsUser([
        'sh',
        '-c',
        `{ ${text}; } >${stage.programs}/out 2>&1`,
      ]);
      await runProcess({ file, args, env: { ...partsEnvironment, PATH: path } }, { signal });
      return wish;
    }
    case 'prepend':
    case 'append': {
      const file = fileOf(where ?? '', stage);
      const content = await readFile(file, 'utf8');
      await writeFile(file, kind === 'prepend' ? `${text}\n${content}` : `${content}${text}\n`);
      return wish;
    }
    case 'request':
      return { ...wish, request: merged(wish.request, JSON.parse(text)) };
  }
}

/** The files of these servers lie elsewhere than those of a machine. */
function fileOf(where: string, { source, sshd }: Stage): string {
  if (where === 'pg_hba.conf') return join(source.primary.dataDirectory, where);
  return where.endsWith('authorized_keys') ? join(sshd.directory, 'authorized_keys') : where;
}

function merged(
  one: Record<string, unknown>,
  other: Record<string, unknown>,
): Record<string, unknown> {
  const result = { ...one };
  for (const [key, value] of Object.entries(other)) {
    const before = result[key];
    const isObject = typeof value === 'object' && value !== null && typeof before === 'object';
    result[key] = isObject ? merged(before as typeof one, value as typeof one) : value;
  }
  return result;
}

function changed(wish: Wish, change: Partial<Wish> = {}): Wish {
  return {
    request: merged(wish.request, change.request ?? {}),
    source: merged(wish.source, change.source ?? {}),
    host: merged(wish.host, change.host ?? {}),
  };
}

const found = (report: PreflightReport, { code, saying }: Scene) =>
  report.findings.filter((one) => one.code === code && one.message.includes(saying));

/** A program that the source host finds first, until it is installed anew. */
async function replaceProgram({ programs }: Stage, name: string, script: string): Promise<void> {
  await writeFile(join(programs, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  await chmod(join(programs, name), 0o755);
  // What it installs is the program of this machine.
  const installs = `case $3 in rsync) rm -f ${programs}/rsync ;; findutils) rm -f ${programs}/find ;; esac`;
  await replaceInstaller({ programs }, installs);
  await chmod(programs, 0o777);
}

/** Stands for the real one, which would ask the network. */
async function replaceInstaller({ programs }: Pick<Stage, 'programs'>, script: string) {
  await writeFile(join(programs, 'apt-get'), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  await chmod(join(programs, 'apt-get'), 0o755);
}

const sql =
  (...statements: readonly string[]) =>
  async ({ source }: Stage) => {
    for (const statement of statements) await source.primary.query(statement);
    return undefined;
  };

const reloading = (assignment: string) =>
  sql(`ALTER SYSTEM SET ${assignment}`, 'SELECT pg_reload_conf()');

let holder: Server;
/** Where a library of the minimal source lies. */
let libraries = '';

const TOGETHER: readonly Scene[] = [
  {
    what: 'a role that may not replicate',
    code: 'SOURCE_RIGHTS_MISSING',
    saying: 'may not replicate',
    provoke: sql('ALTER ROLE cloner NOREPLICATION'),
  },
  {
    what: 'a role that may not start a backup',
    code: 'SOURCE_RIGHTS_MISSING',
    saying: 'pg_backup_start',
    provoke: sql('REVOKE EXECUTE ON FUNCTION pg_backup_start(text, boolean) FROM cloner'),
  },
  {
    what: 'a role that may not stop one',
    code: 'SOURCE_RIGHTS_MISSING',
    saying: 'pg_backup_stop',
    provoke: sql('REVOKE EXECUTE ON FUNCTION pg_backup_stop(boolean) FROM cloner'),
  },
  {
    what: 'a source that takes any standby for a synchronous one',
    code: 'STANDBY_SYNCHRONOUS',
    saying: 'admits any standby',
    provoke: reloading("synchronous_standby_names = '*'"),
  },
  {
    what: 'an archive that takes nothing',
    code: 'ARCHIVER_FAILING',
    saying: 'failed last',
    provoke: async ({ source: { primary } }) => {
      await primary.query("ALTER SYSTEM SET archive_command = 'false'");
      await primary.query('SELECT pg_reload_conf()');
      await primary.query('SELECT pg_switch_wal()');
      await archiver(primary, 'failed_count');
      return undefined;
    },
    byHand: async ({ source: { primary } }) => {
      await primary.query("ALTER SYSTEM SET archive_command = 'true'");
      await primary.query('SELECT pg_reload_conf()');
      await archiver(primary, 'archived_count');
      return undefined;
    },
  },
  {
    what: 'a limit for slots that is small against the size',
    code: 'WAL_LIMIT_LOW',
    saying: 'max_slot_wal_keep_size',
    provoke: reloading("max_slot_wal_keep_size = '16MB'"),
  },
  {
    what: 'text that an older collation has put in order',
    code: 'COLLATION_STALE',
    saying: 'database textual',
    provoke: sql(
      `CREATE DATABASE textual TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'
         LOCALE_PROVIDER icu ICU_LOCALE 'en'`,
      "UPDATE pg_database SET datcollversion = '1' WHERE datname = 'textual'",
    ),
  },
  {
    what: 'and one that a column names',
    code: 'COLLATION_STALE',
    saying: 'of "en-x-icu"',
    provoke: sql(
      'CREATE TABLE words (word text COLLATE "en-x-icu")',
      "UPDATE pg_collation SET collversion = '1' WHERE collname = 'en-x-icu'",
    ),
  },
  {
    what: 'a library that functions of another database need',
    code: 'LIBRARY_MISSING',
    saying: 'fail in textual',
    provoke: async ({ source: { primary } }) => {
      await primary.query(
        "UPDATE pg_proc SET probin = '$libdir/gone' WHERE probin = '$libdir/plpgsql'",
        [],
        'textual',
      );
      return undefined;
    },
    // Stands for the package that brings it.
    byHand: async ({ source: { primary } }) => {
      await primary.query(
        "UPDATE pg_proc SET probin = '$libdir/plpgsql' WHERE probin = '$libdir/gone'",
        [],
        'textual',
      );
      return undefined;
    },
  },
  {
    what: 'a setting that a standby needs as large as its primary',
    code: 'REPLICA_SETTINGS_TOO_LOW',
    saying: 'max_connections',
    provoke: async () =>
      await Promise.resolve({ request: { replica: { settings: { max_connections: 5 } } } }),
  },
  {
    what: 'huge pages that this host has not',
    code: 'REPLICA_SETTINGS_TOO_LOW',
    saying: 'too few huge pages',
    provoke: async () =>
      await Promise.resolve({ request: { replica: { settings: { huge_pages: 'on' } } } }),
  },
  {
    what: 'a start by what this host has not configured',
    code: 'REPLICA_START_FAILED',
    saying: 'pg_ctlcluster knows no cluster',
    provoke: async () => await Promise.resolve({ host: { start: { method: 'pg_ctlcluster' } } }),
    byHand: async () => await Promise.resolve({ host: { start: { method: 'pg_ctl' } } }),
  },
  {
    what: 'a locale that only the source has',
    code: 'LOCALE_MISSING',
    saying: 'lets nobody into abroad',
    provoke: sql(
      'CREATE DATABASE abroad',
      "UPDATE pg_database SET datcollate = 'elsewhere' WHERE datname = 'abroad'",
    ),
    byHand: sql('DROP DATABASE abroad'),
  },
  {
    what: 'a port that is taken',
    code: 'TARGET_INVALID',
    saying: 'is taken on this host',
    provoke: async ({ source }) =>
      await Promise.resolve({ request: { replica: { start: true, port: source.primary.port } } }),
  },
  {
    what: 'a tablespace that would be the source’s own',
    code: 'TARGET_INVALID',
    saying: 'is the source',
    provoke: async ({ source, root }) => {
      await source.primary.createTablespace('fast', join(root, 'source', 'fast'));
      return undefined;
    },
    undo: sql('DROP TABLESPACE fast'),
  },
  {
    what: 'an rsync on the source with known holes',
    code: 'RSYNC_VULNERABLE',
    saying: 'rsync 3.2.3',
    provoke: async (stage) => {
      const version = "case $1 in --version) echo 'rsync  version 3.2.3  protocol version 31' ;;";
      await replaceProgram(stage, 'rsync', `${version} *) exec /usr/bin/rsync "$@" ;; esac`);
      return undefined;
    },
  },
  {
    what: 'a find that is not GNU’s',
    code: 'TOOL_MISSING',
    saying: 'GNU find',
    provoke: async (stage) => {
      await replaceProgram(stage, 'find', 'echo BusyBox');
      return undefined;
    },
  },
];

const WITHOUT_A_WAY: readonly Scene[] = [
  {
    what: 'a pg_hba.conf without a line for the database',
    code: 'SOURCE_AUTHENTICATION_FAILED',
    saying: 'does not admit cloner to database postgres',
    provoke: async ({ source: { primary } }) => {
      await writeFile(join(primary.dataDirectory, 'pg_hba.conf'), 'local all all trust\n');
      await primary.query('SELECT pg_reload_conf()');
      return undefined;
    },
  },
  {
    what: 'and none for replication',
    code: 'SOURCE_RIGHTS_MISSING',
    saying: 'admits no replication connection of cloner',
    provoke: async () => await Promise.resolve(undefined),
  },
  {
    what: 'a host key that nobody knows',
    code: 'SSH_HOST_KEY_UNKNOWN',
    saying: 'is not known',
    provoke: async (stage) => {
      const knownHostsFile = join(stage.root, 'known_hosts');
      return await Promise.resolve({ source: { ssh: { knownHostsFile } } });
    },
  },
  {
    what: 'a target outside of the data roots',
    code: 'TARGET_OUTSIDE_DATA_ROOTS',
    saying: 'does not lie below a data root',
    provoke: async () =>
      await Promise.resolve({ request: { target: { dataDirectory: '/nowhere/orders/main' } } }),
  },
];

const BEHIND_THEM: readonly Scene[] = [
  {
    what: 'a database that is not open to everybody',
    code: 'SOURCE_RIGHTS_MISSING',
    saying: 'may not connect to database postgres',
    provoke: sql('REVOKE CONNECT ON DATABASE postgres FROM PUBLIC'),
  },
  {
    what: 'a key that the source does not let in',
    code: 'SSH_AUTHENTICATION_FAILED',
    saying: 'does not let',
    provoke: async ({ sshd }) =>
      await Promise.resolve({ source: { ssh: { privateKeyFile: sshd.otherKeyFile } } }),
  },
  {
    what: 'a target that holds something else',
    code: 'TARGET_NOT_EMPTY',
    saying: 'is not empty',
    provoke: async ({ root }) => {
      await makeDirectory(join(root, 'orders', 'main'));
      await appendFile(join(root, 'orders', 'main', 'letters'), 'mine');
      return undefined;
    },
    undo: async ({ root }) => {
      await rm(join(root, 'orders'), { recursive: true });
    },
  },
];

const WITHOUT_PASSWORD: readonly Scene[] = [
  {
    what: 'a file with passwords that others may read',
    code: 'CONFIGURATION_INVALID',
    saying: 'has group or world access',
    provoke: async ({ source }) => {
      await chmod(source.passFile, 0o644);
      return undefined;
    },
  },
];

const NO_LOGIN: readonly Scene[] = [
  {
    what: 'a role that may not log in',
    code: 'SOURCE_AUTHENTICATION_FAILED',
    saying: 'has no role cloner that may log in',
    provoke: sql('ALTER ROLE cloner NOLOGIN'),
  },
];

const OTHER_PASSWORD: readonly Scene[] = [
  {
    what: 'a password that is not that of the role',
    code: 'SOURCE_AUTHENTICATION_FAILED',
    saying: 'refuses the password of cloner',
    provoke: sql("ALTER ROLE cloner PASSWORD 'another'"),
    byHand: async ({ source: { primary, password } }) => {
      await primary.query(`ALTER ROLE cloner PASSWORD '${password}'`);
      return undefined;
    },
  },
];

const LAST: readonly Scene[] = [
  {
    what: 'a role with too few connections',
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    saying: 'the connection limit of role cloner',
    provoke: sql('ALTER ROLE cloner CONNECTION LIMIT 2'),
    undo: sql('ALTER ROLE cloner CONNECTION LIMIT -1'),
  },
  {
    what: 'a source without rsync',
    code: 'TOOL_MISSING',
    saying: 'rsync is not installed on 127.0.0.1',
    provoke: async (stage) => {
      await replaceProgram(stage, 'rsync', 'exit 127');
      return undefined;
    },
  },
  {
    what: 'a role that may not see the data directory',
    code: 'SOURCE_RIGHTS_MISSING',
    saying: 'see the data directory',
    provoke: sql('REVOKE pg_monitor FROM cloner'),
  },
  {
    what: 'a standby whose name makes it synchronous',
    code: 'STANDBY_SYNCHRONOUS',
    saying: 'names reporting',
    provoke: async (stage) => {
      await reloading('synchronous_standby_names = \'ANY 1 ("reporting", other)\'')(stage);
      return { request: { replica: { clusterName: 'reporting' } } };
    },
  },
];

const PORT_CLOSED: readonly Scene[] = [
  {
    what: 'a port for rsync that cannot be used',
    code: 'RSYNCD_FAILED',
    saying: '',
    provoke: async () => {
      holder = createServer().listen({ port: 0, host: '127.0.0.1' });
      owned.defer(() => void holder.close());
      await new Promise((resolve) => holder.once('listening', resolve));
      const { port } = holder.address() as { readonly port: number };
      return { source: { rsyncd: { ports: `${String(port)}-${String(port)}` } } };
    },
  },
];

const SCARCE: readonly Scene[] = [
  {
    what: 'a single WAL sender',
    code: 'FEW_WAL_SENDERS',
    saying: 'a single free WAL sender',
    provoke: async () => await Promise.resolve(undefined),
  },
  {
    what: 'no slot for the pin',
    code: 'NO_SLOT_FREE',
    saying: 'no free replication slot',
    provoke: async () => await Promise.resolve(undefined),
  },
  {
    what: 'a host without the programs of the version',
    code: 'TOOL_MISSING',
    saying: '/nowhere/',
    provoke: async () => await Promise.resolve({ host: { postgresBin: '/nowhere/{major}/bin' } }),
    byHand: async () => await Promise.resolve({ host: { postgresBin: POSTGRES_BIN } }),
  },
  {
    what: 'a cluster that is larger than the filesystem of the target',
    code: 'TARGET_NO_SPACE',
    saying: 'are needed',
    provoke: async ({ source: { primary } }) => {
      await writePartsFile(join(primary.dataDirectory, 'base', 'large'), '');
      await truncate(join(primary.dataDirectory, 'base', 'large'), 15 * 2 ** 40);
      return undefined;
    },
    byHand: async ({ source: { primary } }) => {
      await rm(join(primary.dataDirectory, 'base', 'large'));
      return undefined;
    },
  },
];

const DECISIONS: readonly Scene[] = [
  {
    what: 'an older state of the cluster that is brought up to date in place',
    code: 'OLD_CONTENTS_LOST',
    saying: 'is brought up to date in place',
    provoke: async ({ root, source: { primary } }) => {
      const target = join(root, 'orders', 'main');
      await mkdir(join(target, 'global'), { recursive: true });
      for (const file of ['PG_VERSION', join('global', 'pg_control')])
        await copyFile(join(primary.dataDirectory, file), join(target, file));
      return { request: { target: { ifExists: 'resync' } } };
    },
    byHand: async ({ root }) => {
      await rm(join(root, 'orders'), { recursive: true });
      return undefined;
    },
  },
  {
    what: 'a certificate that proves nothing inside a tunnel',
    code: 'SSLMODE_NOT_IN_TUNNEL',
    saying: 'sslmode verify-ca',
    provoke: async ({ sshd }) =>
      await Promise.resolve({
        source: {
          ssh: { tunnelDatabase: true },
          ...{ sslmode: 'verify-ca', sslRootCertFile: sshd.privateKeyFile },
        },
      }),
    byHand: async () =>
      await Promise.resolve({ source: { sslmode: 'prefer', sslRootCertFile: null } }),
  },
];

const FULL: readonly Scene[] = [
  {
    what: 'a data root that is too small beside one that is not',
    code: 'TARGET_NO_SPACE',
    saying: 'are needed',
    provoke: async ({ root }) => {
      const small = owned.use(await mountFilesystem({ type: 'tmpfs', bytes: 48 * 2 ** 20 }));
      return {
        request: { target: { dataDirectory: join(small.path, 'orders', 'main') } },
        host: { dataRoots: [small.path, root] },
      };
    },
  },
];

const RSYNC_HERE: readonly Scene[] = [
  {
    what: 'a host without rsync',
    code: 'TOOL_MISSING',
    saying: 'rsync is not installed on this host',
    provoke: async (stage) => {
      const here = owned.use(await scratchDirectory()).path;
      for (const name of await readdir('/usr/bin'))
        if (name !== 'rsync') await symlink(join('/usr/bin', name), join(here, name));
      await replaceInstaller(stage, `ln -s "$(command -v $3)" ${here}/$3`);
      await chmod(here, 0o777);
      vi.stubEnv('PATH', here);
      return undefined;
    },
    undo: async () => {
      vi.unstubAllEnvs();
      await Promise.resolve();
    },
  },
];

const RESTARTED: readonly Scene[] = [
  {
    what: 'wal_level minimal',
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    saying: 'wal_level',
    provoke: async () => await Promise.resolve({ request: { replica: { slot: 'of_the_clone' } } }),
  },
  {
    what: 'no WAL sender',
    code: 'SOURCE_NO_WAL_SENDER',
    saying: 'no free WAL sender',
    provoke: async () => await Promise.resolve(undefined),
  },
  {
    what: 'no slot for the standby',
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    saying: 'too few replication slots',
    provoke: async () => await Promise.resolve(undefined),
  },
  {
    what: 'a library that is loaded there and missing here',
    code: 'TOOL_MISSING',
    saying: 'the library ours',
    provoke: async (stage) => {
      const path = join(libraries, 'ours.so');
      await rename(path, join(libraries, 'away.so'));
      // Stand for the packages of a distribution: the source knows the one, and installing it here brings the library.
      const known = `[ "$2" = '${path}' ] && echo 'of-ours:amd64: ${path}'`;
      await replaceProgram(stage, 'dpkg-query', known);
      await replaceInstaller(stage, `[ "$3" = of-ours ] && mv ${libraries}/away.so ${path}`);
      return undefined;
    },
  },
];

/** Settles once the archiver has counted one more. */
async function archiver(
  primary: Source['primary'],
  count: 'failed_count' | 'archived_count',
): Promise<void> {
  const counted = async () => {
    const [row] = await primary.query<Record<string, string>>(
      `SELECT ${count} FROM pg_stat_archiver`,
    );
    return Number(row?.[count]);
  };
  for (const deadlineMs = Date.now() + 30_000; (await counted()) === 0; await delay(50))
    if (Date.now() > deadlineMs) throw new Error(`the archiver never told of its ${count}`);
}

const openBoth = async () =>
  await openStage({
    ...{ archive_mode: 'on', archive_command: '' },
    // Or a grant would wait for a standby that nobody has.
    synchronous_commit: 'local',
  });

async function openMinimal(): Promise<Stage> {
  libraries = owned.use(await scratchDirectory()).path;
  const { binDirectory } = (await sharedStage()).source.primary;
  const file = join(binDirectory, 'pg_config');
  const { stdout } = await runProcess({ file, args: ['--pkglibdir'], env: {} }, { signal });
  await copyFile(join(stdout.toString().trim(), 'auto_explain.so'), join(libraries, 'ours.so'));
  await chmod(libraries, 0o777);
  return await openStage({
    ...{ wal_level: 'minimal', max_wal_senders: '0', max_replication_slots: '0' },
    shared_preload_libraries: 'ours',
    dynamic_library_path: `${libraries}:$libdir`,
  });
}

const openScarce = async () =>
  await openStage({ max_wal_senders: '1', max_replication_slots: '0' });

let shared: Promise<Stage> | null = null;
const sharedStage = () => (shared ??= openBoth());

afterAll(async () => {
  await owned.disposeAsync();
});

const BATCHES: readonly {
  readonly batch: string;
  readonly scenes: readonly Scene[];
  readonly open: () => Promise<Stage>;
}[] = [
  { batch: 'beside each other', scenes: TOGETHER, open: sharedStage },
  { batch: 'without a way to the source', scenes: WITHOUT_A_WAY, open: sharedStage },
  { batch: 'behind that', scenes: BEHIND_THEM, open: sharedStage },
  { batch: 'of files here', scenes: WITHOUT_PASSWORD, open: sharedStage },
  { batch: 'of a role', scenes: NO_LOGIN, open: sharedStage },
  { batch: 'of its password', scenes: OTHER_PASSWORD, open: sharedStage },
  { batch: 'of names', scenes: LAST, open: sharedStage },
  { batch: 'on the way of the files', scenes: PORT_CLOSED, open: sharedStage },
  { batch: 'that need a decision', scenes: DECISIONS, open: sharedStage },
  { batch: 'of rsync here', scenes: RSYNC_HERE, open: sharedStage },
  // Mounting takes root.
  ...(runsAsRoot ? [{ batch: 'of room', scenes: FULL, open: sharedStage }] : []),
  { batch: 'of what is scarce', scenes: SCARCE, open: openScarce },
  { batch: 'that need a restart', scenes: RESTARTED, open: openMinimal },
];

describe.each(BATCHES)('$batch', ({ scenes, open }) => {
  let before: PreflightReport;
  let after: PreflightReport;

  beforeAll(async () => {
    const stage = await open();
    let wish = wishOf(stage);
    for (const { provoke } of scenes) {
      const change = await provoke(stage);
      wish = changed(wish, change);
    }
    before = await look(wish, stage);
    for (const { byHand } of scenes) wish = changed(wish, await byHand?.(stage));
    const texts = new Set<string>();
    for (const remedy of scenes.flatMap((scene) =>
      found(before, scene).flatMap((one) => one.remedies),
    )) {
      // One restart does for all that need it.
      if (remedy.text.includes('restart') && texts.has(remedy.text)) continue;
      texts.add(remedy.text);
      if (!remedy.text.includes('restart')) wish = await apply(remedy, wish, stage);
    }
    for (const text of texts)
      if (text.includes('restart'))
        wish = await apply({ kind: 'shell', on: 'source', where: null, text }, wish, stage);
    after = await look(wish, stage);
    for (const { undo } of scenes) await undo?.(stage);
  }, 120_000);

  test.each(scenes)('$what is found with what mends it, and that mends it', (scene) => {
    const [finding] = found(before, scene);

    expect(finding, JSON.stringify(before, null, 1)).toBeDefined();
    if (scene.byHand === undefined) expect(finding?.remedies).not.toEqual([]);
    else expect(finding?.remedies).toEqual([]);
    expect(found(after, scene)).toEqual([]);
  });

  test('then nothing stands against the clone', () => {
    expect(after.findings.filter(({ severity }) => severity === 'error')).toEqual([]);
    expect(after.ready).toBe(true);
    expect(after.notChecked).toEqual([]);
    expect(after.facts.estimate?.probedBytes).toBeGreaterThan(1_000_000);
  });
});

/** Of a preflight as well, but provoked where a part of it is tested, or a clone: by which words. */
const ELSEWHERE: Partial<Record<Finding['code'], readonly [file: string, words: string]>> = {
  COLLATION_DIFFERS: ['packages/postgres/test/source-facts.test.ts', 'COLLATION_DIFFERS'],
  HOST_KEY_UNCHECKED: ['apps/e2e/test/ancestors.test.ts', 'was not checked (ssh.insecure)'],
  NOT_CHECKED: ['packages/postgres/test/source-facts.test.ts', 'NOT_CHECKED'],
  REFLINK_FALLBACK: ['apps/e2e/test/preflight.test.ts', 'REFLINK_FALLBACK'],
  REFLINK_UNSUPPORTED: ['apps/e2e/test/preflight.test.ts', 'REFLINK_UNSUPPORTED'],
  REMOTE_COMMAND_FAILED: ['packages/rsync/test/remote-script.test.ts', 'REMOTE_COMMAND_FAILED'],
  REPLICA_HAS_NO_WAY: ['apps/e2e/test/tunnel.test.ts', 'the replica cannot reach'],
  SLOT_TIMEOUT_SHORT: ['packages/postgres/test/source-facts.test.ts', 'SLOT_TIMEOUT_SHORT'],
  SOURCE_FALLBACK: ['apps/e2e/test/standby-source.test.ts', 'no standby can be copied'],
  SOURCE_LAYOUT_UNSUPPORTED: ['apps/e2e/test/layouts.test.ts', 'SOURCE_LAYOUT_UNSUPPORTED'],
  SOURCE_LOST: ['packages/postgres/test/session.test.ts', 'SOURCE_LOST'],
  SOURCE_MISMATCH: ['apps/e2e/test/bad-input.test.ts', 'SOURCE_MISMATCH'],
  SOURCE_UNREACHABLE: ['apps/e2e/test/bad-input.test.ts', 'SOURCE_UNREACHABLE'],
  SOURCE_VERSION_UNSUPPORTED: ['apps/e2e/test/bad-input.test.ts', 'SOURCE_VERSION_UNSUPPORTED'],
  SSH_HOST_KEY_MISMATCH: ['apps/e2e/test/bad-input.test.ts', 'SSH_HOST_KEY_MISMATCH'],
  SSH_UNREACHABLE: ['apps/e2e/test/bad-input.test.ts', 'SSH_UNREACHABLE'],
  STALLED: ['packages/rsync/test/remote-script.test.ts', 'STALLED'],
  TABLESPACES_SHARED: ['apps/e2e/test/preflight.test.ts', 'TABLESPACES_SHARED'],
  TARGET_BUSY: ['apps/e2e/test/preflight.test.ts', 'TARGET_BUSY'],
  TARGET_IN_USE: ['apps/e2e/test/bad-input.test.ts', 'TARGET_IN_USE'],
  TARGET_NOT_WRITABLE: ['apps/e2e/test/preflight.test.ts', 'TARGET_NOT_WRITABLE'],
  TARGET_OTHER_CLUSTER: ['apps/e2e/test/resync.test.ts', 'TARGET_OTHER_CLUSTER'],
  TIMELINE_UNKNOWN: ['apps/e2e/test/resync.test.ts', 'has never seen'],
  TRANSFER_FAILED: ['packages/rsync/test/transfer.test.ts', 'TRANSFER_FAILED'],
};

/** Errors that tell of source, target or replica are findings, as are all notices. */
const IS_FINDING = /^(?:SOURCE|TARGET|SSH|REPLICA|REFLINK)_/;

/** Told before anybody looks, or of what comes after a preflight. */
const NO_FINDING: readonly string[] = [
  'SOURCE_UNKNOWN',
  'SOURCE_NO_SPACE',
  'SOURCE_PROMOTED',
  'SOURCE_CHANGED',
];

test('every finding that there may be is provoked by a test', async () => {
  const here = BATCHES.flatMap(({ scenes }) => scenes.map(({ code }) => code));
  const elsewhere = Object.entries(ELSEWHERE);
  const words = await Promise.all(
    elsewhere.map(async ([, [file, said]]) =>
      (await readFile(new URL(`../../../${file}`, import.meta.url), 'utf8')).includes(said),
    ),
  );

  const placed = [...here, ...Object.keys(ELSEWHERE), ...NO_FINDING];
  const findings = FindingSchema.shape.code.options.filter(
    (code) => code in NOTICES || IS_FINDING.test(code),
  );
  expect(findings.length).toBeGreaterThan(30);
  expect(findings.filter((code) => !placed.includes(code))).toEqual([]);
  expect(elsewhere.filter((_one, index) => words[index] !== true)).toEqual([]);
});
