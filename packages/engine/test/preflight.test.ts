/**
 * Everything that a preflight finds, provoked on real servers; and what it prints, applied as printed, makes it go away.
 *
 * What can stand beside each other is provoked together, because a preflight finds it all at once.
 */
import { appendFile, chmod, copyFile, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  CloneSpec,
  type Finding,
  type PreflightReport,
  type Remedy,
  SourceConfiguration,
} from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import {
  asPartsUser,
  makeDirectory,
  partsEnvironment,
  type Source,
  type SshServer,
  scratchDirectory,
  startSource,
  startSshd,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ClonePlan, runPreflight } from '../src/index.ts';

const { signal } = new AbortController();
const owned = new AsyncDisposableStack();

/** What is asked for, as a provocation or a remedy may change it. */
interface Wish {
  readonly request: Record<string, unknown>;
  readonly source: Record<string, unknown>;
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
  readonly byHand?: (stage: Stage) => Promise<unknown>;
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
  };
}

async function look(wish: Wish, { root }: Stage): Promise<PreflightReport> {
  created += 1;
  const { source: _, ...spec } = CloneSpec.parse(wish.request);
  const plan: ClonePlan = {
    id: created.toString(16).padStart(32, '0'),
    attempt: 1,
    spec,
    sourceName: 'orders',
    source: SourceConfiguration.parse(wish.source),
    password: null,
    host: {
      dataRoots: [root],
      postgresBin: process.env.TESTBED_POSTGRES_BIN ?? '/usr/lib/postgresql/{major}/bin',
      start: { method: 'pg_ctl' },
      allowedSettings: [],
      stallMs: 10_000,
      noSpaceMs: 0,
      leaseMs: 15_000,
      protectedPaths: [],
      defaultSshKeyFiles: [],
      defaultKnownHostsFiles: [],
      sshAgentSocket: null,
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

const found = (report: PreflightReport, { code, saying }: Scene) =>
  report.findings.filter((one) => one.code === code && one.message.includes(saying));

/** A program that the source host finds first, until it is installed anew. */
async function replaceProgram({ programs }: Stage, name: string, script: string): Promise<void> {
  await writeFile(join(programs, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  await chmod(join(programs, name), 0o755);
  // Stands for the real one, which would ask the network: what it installs is the program of this machine.
  const installs = `case $3 in rsync) rm -f ${programs}/rsync ;; findutils) rm -f ${programs}/find ;; esac`;
  await writeFile(join(programs, 'apt-get'), `#!/bin/sh\n${installs}\n`, { mode: 0o755 });
  await chmod(join(programs, 'apt-get'), 0o755);
  await chmod(programs, 0o777);
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
    what: 'a setting that a standby needs as large as its primary',
    code: 'REPLICA_SETTINGS_TOO_LOW',
    saying: 'max_connections',
    provoke: async () =>
      await Promise.resolve({ request: { replica: { settings: { max_connections: 5 } } } }),
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

const LAST: readonly Scene[] = [
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
    provoke: async () => {
      await rename(join(libraries, 'ours.so'), join(libraries, 'away.so'));
      return undefined;
    },
    byHand: async () => {
      await rename(join(libraries, 'away.so'), join(libraries, 'ours.so'));
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
  await chmod(libraries, 0o755);
  return await openStage({
    ...{ wal_level: 'minimal', max_wal_senders: '0', max_replication_slots: '0' },
    shared_preload_libraries: 'ours',
    dynamic_library_path: `${libraries}:$libdir`,
  });
}

let shared: Promise<Stage> | null = null;
const sharedStage = () => (shared ??= openBoth());

afterAll(async () => {
  await owned.disposeAsync();
});

describe.each([
  { batch: 'beside each other', scenes: TOGETHER, open: sharedStage },
  { batch: 'without a way to the source', scenes: WITHOUT_A_WAY, open: sharedStage },
  { batch: 'behind that', scenes: BEHIND_THEM, open: sharedStage },
  { batch: 'of files here', scenes: WITHOUT_PASSWORD, open: sharedStage },
  { batch: 'of names', scenes: LAST, open: sharedStage },
  { batch: 'on the way of the files', scenes: PORT_CLOSED, open: sharedStage },
  { batch: 'that need a restart', scenes: RESTARTED, open: openMinimal },
])('$batch', ({ scenes, open }) => {
  let before: PreflightReport;
  let after: PreflightReport;

  beforeAll(async () => {
    const stage = await open();
    let wish = wishOf(stage);
    for (const { provoke } of scenes) {
      const change = await provoke(stage);
      wish = {
        request: merged(wish.request, change?.request ?? {}),
        source: merged(wish.source, change?.source ?? {}),
      };
    }
    before = await look(wish, stage);
    for (const scene of scenes) await scene.byHand?.(stage);
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
