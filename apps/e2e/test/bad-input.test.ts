/**
 * Everything that can be wrong with a request, a source or a target: each is refused with a code, a message and a hint
 * that names the remedy, and afterwards both sides are as they were.
 *
 * That PostgreSQL 14 is refused is shown by a real server behind a relay that puts 14 in the place of its version, since
 * no older server is to be had; and that SSH leads to another cluster than SQL, by a cluster that was moved under a
 * running server, as a stale mount does it.
 */

import { existsSync } from 'node:fs';
import {
  chmod,
  copyFile,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { type AddressInfo, connect, createServer } from 'node:net';
import { join } from 'node:path';
import type { ErrorCode } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import {
  freePort,
  leftBehind,
  makeDirectory,
  mountFilesystem,
  runAsPartsUser,
  runsAsRoot,
  type Source,
  type SshServer,
  scratchDirectory,
  startPrimary,
  startSource,
  startSshd,
  writePartsFile,
} from '@pgcloned/testbed';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { type Ended, runClone, startClone } from './run-clone.ts';

const WAL_SENDERS = 3;
const SLOTS = 2;
const MEGABYTE = 1_000_000;

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(
    await startSource({
      settings: { max_wal_senders: String(WAL_SENDERS), max_replication_slots: String(SLOTS) },
    }),
  );
  directory = owned.use(await scratchDirectory()).path;
  await source.primary.createTablespace('fast', join(directory, 'fast'));
});

afterEach(async () => {
  await rm(at('new'), { recursive: true, force: true });
});

afterAll(async () => {
  await owned.disposeAsync();
});

interface Wish {
  /** Merged over the source that works. */
  readonly source?: Readonly<Record<string, unknown>>;
  readonly target?: Readonly<Record<string, unknown>>;
  readonly replica?: Readonly<Record<string, unknown>>;
  readonly more?: Readonly<Record<string, unknown>>;
  readonly env?: Readonly<Record<string, string>>;
}

interface Refusal {
  /** What is wrong. */
  readonly given: string;
  /** Makes it so; what it defers is undone after the test. */
  readonly wish: (undo: AsyncDisposableStack) => Promise<Wish> | Wish;
  readonly code: ErrorCode;
  readonly status: number;
  readonly message: string | RegExp;
  readonly hint: string | RegExp;
}

const at = (...names: readonly string[]) => join(directory, ...names);

const specOf = ({ source: over, target, replica, more }: Wish) => ({
  ...more,
  ...(over !== undefined && { source: over }),
  target: {
    dataDirectory: at('new', 'main'),
    tablespaces: { [at('fast')]: at('new', 'fast') },
    ...target,
  },
  replica: { ...replica },
});

/** Names, types, rights and sizes of everything below, and when files were written. */
async function contentsOf(path: string): Promise<string> {
  const { stdout } = await runProcess(
    {
      file: 'find',
      args: [path, '(', '-type', 'd', '-printf', '%p %m\n', ')', '-o', '-printf', '%p %m %s %T@\n'],
      env: {},
    },
    { signal: AbortSignal.timeout(60_000) },
  );
  return stdout.toString().split('\n').toSorted().join('\n');
}

async function expectNothingLeft({ name }: Pick<Ended, 'name'>): Promise<void> {
  const found = await leftBehind({
    names: [directory, ...(name === '' ? [] : [name])],
    servers: [source.primary],
    directories: [directory],
  });
  expect(found).toEqual([]);
}

const saying = (text: string | RegExp): unknown =>
  typeof text === 'string' ? expect.stringContaining(text) : expect.stringMatching(text);

const SOURCE_REFUSALS: readonly Refusal[] = [
  {
    given: 'a wrong password',
    wish: async () => ({ source: { passFile: await passFileOf('wrong') } }),
    code: 'SOURCE_AUTHENTICATION_FAILED',
    status: 3,
    message: 'refuses the password of cloner',
    hint: /^Put the line 127\.0\.0\.1:\d+:\*:cloner:PASSWORD with the password of cloner into the passFile of the source/,
  },
  {
    given: 'no password where the server wants one',
    wish: () => ({ source: { passFile: null }, env: { HOME: directory } }),
    code: 'SOURCE_AUTHENTICATION_FAILED',
    status: 3,
    message: 'wants a password of cloner, and there is none',
    hint: 'with the password of cloner into the passFile of the source, or into ~/.pgpass, with mode 0600.',
  },
  {
    given: 'a file with passwords that others may read',
    wish: async (undo) => {
      const passFile = await passFileOf(source.password);
      await chmod(passFile, 0o644);
      undo.defer(() => chmod(passFile, 0o600));
      return { source: { passFile } };
    },
    code: 'CONFIGURATION_INVALID',
    status: 2,
    message: 'has group or world access',
    hint: 'with mode 0600',
  },
  {
    given: 'a database that does not exist',
    wish: () => ({ source: { database: 'nowhere' } }),
    code: 'CONFIGURATION_INVALID',
    status: 2,
    message: 'has no database nowhere',
    hint: 'Set the database of the source to one that exists.',
  },
  {
    given: 'a primary that is down',
    wish: async () => ({ source: { port: await freePort() } }),
    code: 'SOURCE_UNREACHABLE',
    status: 6,
    message: 'there is no answer from a PostgreSQL server at 127.0.0.1:',
    hint: 'Check that the server runs, listens on this address and port',
  },
  ...[14, 19].map(
    (major): Refusal => ({
      given: `PostgreSQL ${String(major)}`,
      wish: async (undo) => {
        const [row] = await source.primary.query<{ number: string; name: string }>(
          "select current_setting('server_version_num') as number, current_setting('server_version') as name",
        );
        const { number = '', name = '' } = row ?? {};
        const port = await relay(undo, source.primary.port, [
          [number, `${String(major)}${number.slice(2)}`],
          [name, `${String(major)}${name.slice(2)}`],
        ]);
        return { source: { port, passFile: await passFileOf(source.password) } };
      },
      code: 'SOURCE_VERSION_UNSUPPORTED',
      status: 7,
      message: new RegExp(`^PostgreSQL ${String(major)}\\.\\d+ is not supported$`),
      hint: 'This release clones PostgreSQL 15 to 18:',
    }),
  ),
  {
    given: 'a key that the SSH server does not know',
    wish: () => ({
      source: { ssh: { ...sshOf(source), privateKeyFile: source.sshd.otherKeyFile } },
    }),
    code: 'SSH_AUTHENTICATION_FAILED',
    status: 3,
    message: `does not let`,
    hint: /Add the public key of .*other_client_key to the authorized_keys of \S+ on 127\.0\.0\.1/,
  },
  {
    given: 'a key file that is not there',
    wish: () => ({ source: { ssh: { ...sshOf(source), privateKeyFile: at('no key') } } }),
    code: 'SSH_AUTHENTICATION_FAILED',
    status: 3,
    message: 'there is no such file',
    hint: 'Name a private key',
  },
  {
    given: 'an unknown host key',
    wish: async () => {
      await writePartsFile(at('known_hosts'), '');
      return { source: { ssh: { ...sshOf(source), knownHostsFile: at('known_hosts') } } };
    },
    code: 'SSH_HOST_KEY_UNKNOWN',
    status: 3,
    message: 'the host key of 127.0.0.1 is not known',
    hint: 'ssh-keyscan -p ',
  },
  {
    given: 'a host key that has changed',
    wish: () => ({
      source: { ssh: { ...sshOf(source), knownHostsFile: source.sshd.wrongKnownHostsFile } },
    }),
    code: 'SSH_HOST_KEY_MISMATCH',
    status: 3,
    message: 'the host key of 127.0.0.1 is not the known one',
    hint: 'ssh-keygen -R ',
  },
  {
    given: 'an SSH server that is down',
    wish: async () => ({ source: { ssh: { ...sshOf(source), port: await freePort() } } }),
    code: 'SSH_UNREACHABLE',
    status: 6,
    message: 'cannot connect to 127.0.0.1 port ',
    hint: 'Check that sshd runs on 127.0.0.1, that it listens on port ',
  },
  {
    given: 'no rsync on the source',
    wish: async (undo) => ({ source: { ssh: sshOf(await sshdWithout(undo, 'rsync')) } }),
    code: 'TOOL_MISSING',
    status: 7,
    message: 'rsync is not installed on 127.0.0.1',
    hint: 'Install it there: apt-get install rsync.',
  },
  {
    given: 'no GNU find on the source',
    wish: async (undo) => ({ source: { ssh: sshOf(await sshdWithout(undo, 'find')) } }),
    code: 'TOOL_MISSING',
    status: 7,
    message: 'GNU find is not installed on 127.0.0.1',
    hint: 'Install it there: apt-get install findutils.',
  },
  ...(
    [
      [
        'the right to start a backup',
        'REVOKE EXECUTE ON FUNCTION pg_backup_start(text, boolean) FROM cloner',
        'GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO cloner;',
      ],
      [
        'the right to stop a backup',
        'REVOKE EXECUTE ON FUNCTION pg_backup_stop(boolean) FROM cloner',
        'GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO cloner;',
      ],
      ['the right to see settings', 'REVOKE pg_monitor FROM cloner', 'GRANT pg_monitor TO cloner;'],
      [
        'the attribute REPLICATION',
        'ALTER ROLE cloner NOREPLICATION',
        'ALTER ROLE cloner REPLICATION;',
      ],
    ] as const
  ).map(
    ([right, revoke, grant]): Refusal => ({
      given: `a user without ${right}`,
      wish: async (undo) => {
        await source.primary.query(revoke);
        undo.defer(async () => {
          await source.primary.query(grant);
        });
        return {};
      },
      code: 'SOURCE_RIGHTS_MISSING',
      status: 7,
      message: 'cloner may not',
      hint: `of the source: ${grant}`,
    }),
  ),
  {
    given: 'no line for replication in pg_hba.conf',
    wish: async (undo) => {
      await changeHba(undo, (lines) => lines.filter((line) => !/replication cloner/.test(line)));
      return {};
    },
    code: 'SOURCE_RIGHTS_MISSING',
    status: 7,
    message: 'admits no replication connection of cloner',
    hint: /Add this line to pg_hba\.conf .*: host replication cloner 127\.0\.0\.1\/32 scram-sha-256$/,
  },
  {
    given: 'no line for the database in pg_hba.conf',
    wish: async (undo) => {
      await changeHba(undo, (lines) => lines.filter((line) => !/all cloner/.test(line)));
      return {};
    },
    code: 'SOURCE_AUTHENTICATION_FAILED',
    status: 3,
    message: 'does not admit cloner to database postgres',
    hint: /add this line to pg_hba\.conf .*: host postgres cloner 127\.0\.0\.1\/32 scram-sha-256$/,
  },
  {
    given: 'no free WAL sender',
    wish: async (undo) => {
      for (let taken = 0; taken < WAL_SENDERS; taken += 1) await takeWalSender(undo);
      return {};
    },
    code: 'SOURCE_NO_WAL_SENDER',
    status: 7,
    message: 'the source has no free WAL sender',
    hint: `ALTER SYSTEM SET max_wal_senders = ${String(WAL_SENDERS + 2)};`,
  },
  {
    given: 'no free slot for the standby',
    wish: async (undo) => {
      await takeSlots(undo, SLOTS);
      return { replica: { slot: 'its_own' } };
    },
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    status: 7,
    message: 'the source has too few replication slots for the standby',
    hint: `ALTER SYSTEM SET max_replication_slots = ${String(SLOTS + 2)};`,
  },
  {
    given: 'a slot for the standby that exists already',
    wish: async (undo) => {
      await takeSlots(undo, 1);
      return { replica: { slot: 'taken_1' }, more: { wal: { retention: 'none' } } };
    },
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    status: 7,
    message: 'replication slot taken_1 exists already',
    hint: "SELECT pg_drop_replication_slot('taken_1')",
  },
  {
    given: 'a data directory that is not the one to expect',
    wish: () => ({ source: { dataDirectory: '/somewhere/else' } }),
    code: 'SOURCE_MISMATCH',
    status: 7,
    message: /data directory|different clusters/,
    hint: 'dataDirectory',
  },
];

const TARGET_REFUSALS: readonly Refusal[] = [
  {
    given: 'a target that is a relative path',
    wish: () => ({ target: { dataDirectory: 'new/main' } }),
    code: 'REQUEST_INVALID',
    status: 2,
    message: 'target.dataDirectory: must be an absolute path',
    hint: 'pgcloned run --help',
  },
  {
    given: 'a target with .. in its path',
    wish: () => ({ target: { dataDirectory: `${directory}/new/../main` } }),
    code: 'REQUEST_INVALID',
    status: 2,
    message: 'target.dataDirectory: must not contain . or .. components',
    hint: 'pgcloned run --help',
  },
  {
    given: 'an unknown field',
    wish: () => ({ target: { dataDirectry: at('new') } }),
    code: 'REQUEST_INVALID',
    status: 2,
    message: 'dataDirectry',
    hint: 'pgcloned run --help',
  },
  {
    given: 'a setting that would run a program',
    wish: () => ({ replica: { settings: { archive_command: 'rm -rf /' } } }),
    code: 'SETTING_FORBIDDEN',
    status: 2,
    message: 'setting archive_command may not be set by a request',
    hint: 'worker.allowedSettings',
  },
  {
    given: 'a directory in which somebody keeps something',
    wish: async () => {
      await makeDirectory(at('full'));
      await writePartsFile(at('full', 'letter'), 'dear reader');
      return { target: { dataDirectory: at('full') } };
    },
    code: 'TARGET_NOT_EMPTY',
    status: 5,
    message: 'full is not empty',
    hint: 'Choose another directory',
  },
  {
    given: 'replacing a directory that is no cluster',
    wish: () => ({ target: { dataDirectory: at('full'), ifExists: 'replace' } }),
    code: 'TARGET_NOT_EMPTY',
    status: 5,
    message: 'full is not empty',
    hint: 'what lies there is not a part of a cluster that could be replaced',
  },
  {
    given: 'a running server in the target, even if it may be replaced',
    wish: () => ({ target: { dataDirectory: source.primary.dataDirectory, ifExists: 'replace' } }),
    code: 'TARGET_IN_USE',
    status: 5,
    message: `a PostgreSQL server runs on `,
    hint: 'pg_ctl stop -D',
  },
  {
    given: 'a target inside a data directory',
    wish: () => ({
      target: { dataDirectory: join(source.primary.dataDirectory, 'base', 'clone') },
    }),
    code: 'TARGET_INVALID',
    status: 7,
    message: 'the target lies inside the data directory ',
    hint: 'Choose another directory for the clone.',
  },
  {
    given: 'a WAL directory inside the data directory',
    wish: () => ({ target: { walDirectory: at('new', 'main', 'wal') } }),
    code: 'TARGET_INVALID',
    status: 7,
    message: 'lie in each other',
    hint: 'Choose another directory for the clone.',
  },
  {
    given: 'a target that is a file',
    wish: async () => {
      await writePartsFile(at('a file'), '');
      return { target: { dataDirectory: at('a file') } };
    },
    code: 'TARGET_INVALID',
    status: 7,
    message: 'a file is not a directory',
    hint: 'Choose another directory for the clone.',
  },
  {
    given: 'a target that is a link to nowhere',
    wish: async () => {
      await symlink(at('nowhere'), at('dead link'));
      return { target: { dataDirectory: at('dead link') } };
    },
    code: 'TARGET_INVALID',
    status: 7,
    message: 'is a link that leads nowhere',
    hint: 'Remove the link, or make the directory that it points to.',
  },
  {
    given: 'a target that holds the password file',
    wish: async () => {
      await makeDirectory(at('secrets'));
      const passFile = at('secrets', 'pgpass');
      await writePartsFile(passFile, `*:*:*:*:${source.password}\n`);
      return { source: { passFile }, target: { dataDirectory: at('secrets') } };
    },
    code: 'TARGET_INVALID',
    status: 7,
    message: 'which pgcloned itself needs',
    hint: 'Choose another directory for the clone.',
  },
  {
    given: 'a target below a directory that may not be written',
    wish: async () => {
      await makeDirectory(at('closed'));
      await chmod(at('closed'), 0o500);
      return { target: { dataDirectory: at('closed', 'main') } };
    },
    code: 'TARGET_NOT_WRITABLE',
    status: 7,
    message: 'closed cannot be written',
    hint: 'belong to the user that runs',
  },
  {
    given: 'a tablespace without a mapping on the host of the source',
    wish: () => ({ target: { tablespaces: {} } }),
    code: 'TARGET_INVALID',
    status: 7,
    message: "is the source's own",
    hint: /^Source and clone share a host: map .*fast to another directory with target\.tablespaces\.$/,
  },
  {
    given: 'a mapping of a tablespace into a place that is taken',
    wish: async () => {
      await runAsPartsUser(['cp', '-a', at('fast'), at('taken')]);
      return { target: { tablespaces: { [at('fast')]: at('taken') } } };
    },
    code: 'TARGET_NOT_EMPTY',
    status: 5,
    message: 'exists already',
    hint: 'Map the tablespace to another directory with target.tablespaces',
  },
  {
    given: 'a mapping of a tablespace that the source does not have',
    wish: () => ({
      target: { tablespaces: { [at('fast')]: at('new', 'fast'), '/srv/fats': '/srv/fast' } },
    }),
    code: 'TARGET_INVALID',
    status: 7,
    message: 'the source has no tablespace at /srv/fats',
    hint: 'pg_tablespace_location()',
  },
  {
    given: 'a port that is taken',
    wish: () => ({ replica: { start: true, port: source.primary.port } }),
    code: 'TARGET_INVALID',
    status: 7,
    message: 'is taken on this host',
    hint: 'Choose another replica.port',
  },
  {
    given: 'fewer connections than the source has',
    wish: () => ({ replica: { settings: { max_connections: 20 } } }),
    code: 'REPLICA_SETTINGS_TOO_LOW',
    status: 7,
    message: 'max_connections of the replica is too low',
    hint: 'Set max_connections to at least 60 in replica.settings',
  },
  {
    given: 'a configuration of the host where the host has none',
    wish: () => ({ replica: { configuration: 'host' } }),
    code: 'TARGET_INVALID',
    status: 7,
    message: 'this host has no configuration for the data directory',
    hint: 'choose replica.configuration: auto',
  },
  {
    given: 'no programs of PostgreSQL on this host',
    wish: () => ({ env: { PGCLONED_WORKER_POSTGRES_BIN: '/nowhere/{major}/bin' } }),
    code: 'TOOL_MISSING',
    status: 7,
    message: /PostgreSQL|postgres/,
    hint: 'postgresBin',
  },
  {
    given: 'a deadline that has passed',
    wish: () => ({ more: { deadline: '2020-01-01T00:00:00Z' } }),
    code: 'DEADLINE_EXCEEDED',
    status: 8,
    message: 'the deadline of the clone has passed',
    hint: 'Ask for a later deadline',
  },
];

test.each([...SOURCE_REFUSALS, ...TARGET_REFUSALS])(
  '$given: $code, the remedy is named, and nothing was changed',
  async ({ wish, code, status, message, hint }) => {
    await using undo = new AsyncDisposableStack();
    const wanted = await wish(undo);
    const before = await contentsOf(directory);

    const ended = await runClone(source, specOf(wanted), { env: wanted.env ?? {} });

    expect(ended.error).toMatchObject({
      code,
      message: saying(message),
      hint: saying(hint),
      exitStatus: status,
    });
    expect(ended.status).toBe(status);
    expect(await contentsOf(directory)).toBe(before);
    await undo.disposeAsync();
    await expectNothingLeft(ended);
  },
);

test('a source with wal_level minimal is refused with the statement that raises it', async () => {
  await using minimal = await startSource({
    settings: { wal_level: 'minimal', max_wal_senders: '0' },
  });

  const { error } = await runClone(minimal, { target: { dataDirectory: at('new', 'main') } });

  expect(error).toMatchObject({
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    message: 'wal_level of the source is minimal',
    hint: saying("ALTER SYSTEM SET wal_level = 'replica';"),
  });
});

test('a library that the source loads and this host lacks is refused by name', async () => {
  await using libraries = await scratchDirectory();
  const ours = join(libraries.path, 'ours.so');
  const [file, ...args] = [join(source.primary.binDirectory, 'pg_config'), '--pkglibdir'] as const;
  const directory = (await runAsPartsUser([file, ...args])).stdout.toString().trim();
  await copyFile(join(directory, 'auto_explain.so'), ours);
  await using preloading = await startSource({
    settings: {
      shared_preload_libraries: 'ours',
      dynamic_library_path: `${libraries.path}:$libdir`,
    },
  });
  await rm(ours);

  const { error, status } = await runClone(preloading, {
    target: { dataDirectory: at('new', 'main') },
  });

  expect(error).toMatchObject({
    code: 'TOOL_MISSING',
    phase: 'preflight',
    message: 'the library ours is not installed on this host',
    hint: 'Install the package of the extension here as on the source; the replica loads it at start.',
  });
  expect(status).toBe(7);
  expect(existsSync(at('new'))).toBe(false);
});

test('without a free slot the clone is made all the same, and says that nothing kept the WAL', async () => {
  await using undo = new AsyncDisposableStack();
  await takeSlots(undo, SLOTS);

  const ended = await runClone(source, specOf({}));

  expect(ended.error).toBeUndefined();
  expect(ended.result.result.warnings).toContainEqual(
    saying('The source has no free replication slot (max_replication_slots), so WAL is not pinned'),
  );
  expect(ended.result.leftovers).toEqual([]);
  await undo.disposeAsync();
  await expectNothingLeft(ended);
});

test.each([
  {
    what: 'holds another cluster',
    phase: 'preflight',
    put: async (path: string) => {
      await using other = await startPrimary({ dataDirectory: path });
      await other.stop();
    },
  },
  {
    what: 'holds a copy of the cluster, with its postmaster.pid',
    phase: 'stream-wal',
    put: async (path: string) => {
      await runAsPartsUser(['cp', '-aT', `${path}.moved`, path]);
    },
  },
])('a data directory that $what is not taken for that of the running server', async (scene) => {
  const { dataDirectory } = source.primary;
  await using undo = new AsyncDisposableStack();
  // The server goes on: it works in its directory, whatever that is called.
  await rename(dataDirectory, `${dataDirectory}.moved`);
  undo.defer(async () => {
    await rm(dataDirectory, { recursive: true });
    await rename(`${dataDirectory}.moved`, dataDirectory);
  });
  await scene.put(dataDirectory);
  const before = await contentsOf(directory);

  const ended = await runClone(source, specOf({}));

  expect(ended.error).toMatchObject({
    code: 'SOURCE_MISMATCH',
    phase: scene.phase,
    message: 'SQL and SSH lead to different clusters',
    hint: saying('Check host, port'),
  });
  expect(ended.status).toBe(7);
  expect(await contentsOf(directory)).toBe(before);
  await expectNothingLeft(ended);
});

describe.skipIf(!runsAsRoot)('on a filesystem of its own, which takes root to mount,', () => {
  test('a target that is too small is refused, with what is free and what is needed', async () => {
    await using small = await mountFilesystem({ type: 'tmpfs', bytes: 16 * MEGABYTE });
    const dataDirectory = join(small.path, 'main');

    const ended = await runClone(source, specOf({ target: { dataDirectory } }));

    expect(ended.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'preflight',
      message: saying(
        / has 15\.\d MB free, and \d+\.\d MB are needed, of which 40\.0 MB stay free$/,
      ),
      hint: 'Make room there, or choose a target on a larger filesystem.',
    });
    expect(ended.status).toBe(7);
    expect(await readdir(small.path)).toEqual([]);
    await expectNothingLeft(ended);
  });

  test('a target that fills up during the copy ends it, and the next clone into it works', async () => {
    await using filesystem = await mountFilesystem({ type: 'tmpfs', bytes: 200 * MEGABYTE });
    const dataDirectory = join(filesystem.path, 'main');
    const running = await startClone(
      source,
      specOf({ target: { dataDirectory }, more: { transfer: { maxRate: 8 * MEGABYTE } } }),
    );
    await running.reached('copy-files');
    await fill(filesystem.path);

    const ended = await running.ended;

    expect(ended.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'copy-files',
      hint: saying(/[Mm]ake room/),
    });
    expect(ended.status).toBe(7);
    expect(isStartable(dataDirectory)).toBe(false);
    await expectNothingLeft(ended);
    await rm(join(filesystem.path, 'filler'));
    expect((await runClone(source, specOf({ target: { dataDirectory } }))).error).toBeUndefined();
  });

  test('a target that has room but no more inodes ends the clone as a full one', async () => {
    await using filesystem = await mountFilesystem({
      type: 'tmpfs',
      bytes: 400 * MEGABYTE,
      inodes: 20,
    });

    const ended = await runClone(
      source,
      specOf({ target: { dataDirectory: join(filesystem.path, 'main') } }),
    );

    expect(ended.error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'copy-files',
      hint: saying('df -i'),
    });
    expect(ended.status).toBe(7);
    await expectNothingLeft(ended);
  });

  test('a read-only filesystem is told from one of somebody else', async () => {
    await using filesystem = await mountFilesystem({ type: 'tmpfs', bytes: 16 * MEGABYTE });
    await filesystem.remount('ro');
    const dataDirectory = join(filesystem.path, 'main');

    const ended = await runClone(source, specOf({ target: { dataDirectory } }));

    expect(ended.error).toMatchObject({
      code: 'TARGET_NOT_WRITABLE',
      phase: 'preflight',
      message: saying('cannot be written'),
      hint: 'Mount the filesystem read-write, or choose another target.',
    });
    expect(ended.status).toBe(7);
    await expectNothingLeft(ended);
  });
});

function isStartable(dataDirectory: string): boolean {
  return existsSync(join(dataDirectory, 'global', 'pg_control'));
}

/** With a file that takes what is left. */
async function fill(path: string): Promise<void> {
  await runAsPartsUser(['dd', 'if=/dev/zero', `of=${join(path, 'filler')}`, 'bs=1M'], {
    accept: [1],
  });
}

function sshOf({
  sshd,
}: {
  readonly sshd: Pick<SshServer, 'user' | 'port' | 'privateKeyFile' | 'knownHostsFile'>;
}): Readonly<Record<string, unknown>> {
  const { user, port, privateKeyFile, knownHostsFile } = sshd;
  return { user, port, privateKeyFile, knownHostsFile };
}

/** For any server: the relay listens on a port of its own. */
async function passFileOf(password: string): Promise<string> {
  const path = join(source.sshd.directory, 'other pgpass');
  await writePartsFile(path, `*:*:*:cloner:${password}\n`);
  return path;
}

/** An SSH server that finds a program of this name that does nothing, before the real one. */
async function sshdWithout(
  undo: AsyncDisposableStack,
  program: string,
): Promise<{ readonly sshd: SshServer }> {
  const { path } = undo.use(await scratchDirectory());
  await writeFile(join(path, program), '#!/bin/sh\nexit 127\n', { mode: 0o755 });
  return { sshd: undo.use(await startSshd({ settings: [`SetEnv PATH=${path}:/usr/bin:/bin`] })) };
}

async function changeHba(
  undo: AsyncDisposableStack,
  change: (lines: string[]) => string[],
): Promise<void> {
  const { primary } = source;
  const path = join(primary.dataDirectory, 'pg_hba.conf');
  const before = await readFile(path, 'utf8');
  const put = async (text: string) => {
    await writeFile(path, text);
    await primary.query('SELECT pg_reload_conf()');
    // The postmaster reads the file a moment after it was told to.
    await expect
      .poll(async () => {
        const [row] = await primary.query<{ lines: string }>(
          'SELECT count(*) AS lines FROM pg_hba_file_rules',
        );
        return Number(row?.lines);
      })
      .toBe(text.trim().split('\n').length);
  };
  await put(change(before.split('\n')).join('\n'));
  undo.defer(() => put(before));
}

async function takeWalSender(undo: AsyncDisposableStack): Promise<void> {
  const { socketDirectory: host, port } = source.primary;
  const client = new pg.Client({ host, port, user: 'postgres', replication: 'true' } as object);
  await client.connect();
  undo.defer(() => client.end());
}

async function takeSlots(undo: AsyncDisposableStack, count: number): Promise<void> {
  for (let taken = 1; taken <= count; taken += 1) {
    const name = `taken_${String(taken)}`;
    await source.primary.query('SELECT pg_create_physical_replication_slot($1)', [name]);
    undo.defer(async () => {
      await source.primary.query('SELECT pg_drop_replication_slot($1)', [name]);
    });
  }
}

/** A port that leads to `port`, where the server's texts are replaced by others of the same length. */
async function relay(
  undo: AsyncDisposableStack,
  port: number,
  replacements: readonly (readonly [string, string])[],
): Promise<number> {
  const server = createServer((client) => {
    const upstream = connect(port, '127.0.0.1');
    client.pipe(upstream);
    upstream.on('data', (chunk: Buffer) => {
      const text = replacements.reduce(
        (sum, [from, to]) => sum.replaceAll(from, to),
        chunk.toString('latin1'),
      );
      client.write(Buffer.from(text, 'latin1'));
    });
    upstream.on('close', () => client.destroy());
    client.on('error', () => upstream.destroy());
    upstream.on('error', () => client.destroy());
    client.on('close', () => upstream.destroy());
  });
  const { promise: listening, resolve } = Promise.withResolvers<void>();
  server.listen(0, '127.0.0.1', resolve);
  await listening;
  undo.defer(() => {
    server.close();
  });
  return (server.address() as AddressInfo).port;
}
