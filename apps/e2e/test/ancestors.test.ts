/**
 * What the scripts before us could do, and that no other file shows: every way to log in, more than one clone at a time,
 * any language, the three ways to show progress, and things that break in the middle.
 */
import { existsSync, readdirSync } from 'node:fs';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { startProcess } from '@pgcloned/process';
import {
  adoptServer,
  asPartsUser,
  compareTables,
  descendantsOf,
  findPostgres,
  freePort,
  leftBehind,
  listProcesses,
  makeDirectory,
  PGCLONED,
  partsEnvironment,
  runAsPartsUser,
  type Source,
  scratchDirectory,
  startCluster,
  startSource,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Ended, type Running, runClone, startClone } from './run-clone.ts';

/** 22 MB take four seconds: there is a middle. */
const SLOW = { maxRate: 6_000_000, workers: 2 };

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  source = owned.use(await startSource());
  directory = owned.use(await scratchDirectory()).path;
  await source.primary.query('CREATE TABLE answers AS SELECT 42 AS id');
});

afterAll(async () => {
  await owned.disposeAsync();
});

const at = (...names: readonly string[]) => join(directory, ...names);

async function expectNothingLeft(
  { name }: Pick<Ended, 'name'>,
  home: string,
  pidsKept: readonly number[] = [],
): Promise<void> {
  const directories = [at(home)].filter((path) => existsSync(path));
  expect(
    await leftBehind({ names: [name], servers: [source.primary], directories, pidsKept }),
  ).toEqual([]);
}

/** A clone that is started, streams, and is equal to its source. */
async function expectStandby(
  home: string,
  how: {
    readonly source?: Readonly<Record<string, unknown>>;
    readonly env?: Readonly<Record<string, string>>;
  },
): Promise<{ readonly ended: Ended; readonly conninfo: string }> {
  const ended = await runClone(
    source,
    {
      ...(how.source !== undefined && { source: how.source }),
      target: { dataDirectory: at(home, 'main') },
      replica: { start: true, waitFor: 'streaming', port: await freePort() },
    },
    { env: how.env ?? {} },
  );
  expect(ended.error).toBeUndefined();
  await using standby = await adoptServer(at(home, 'main'));
  await waitForReplay(source.primary, standby);
  expect(await compareTables(source.primary, standby)).toEqual([]);
  const [row] = await standby.query<{ conninfo: string }>(
    "SELECT current_setting('primary_conninfo') AS conninfo",
  );
  await expectNothingLeft(ended, home, [standby.pid]);
  return { ended, conninfo: row?.conninfo ?? '' };
}

/** A home with nothing in it but what the test puts there. */
async function homeWith(name: string, files: Readonly<Record<string, string>>): Promise<string> {
  await makeDirectory(at(name, '.ssh'));
  for (const [file, text] of Object.entries(files)) await writePartsFile(at(name, file), text);
  return at(name);
}

describe('who logs in', () => {
  test('a password from ~/.pgpass makes the clone, and the standby keeps it in a file of its own', async () => {
    const home = await homeWith('home pgpass', {
      '.pgpass': `127.0.0.1:${String(source.primary.port)}:*:cloner:${source.password}\n`,
    });

    const { conninfo } = await expectStandby('by pgpass', {
      source: { passFile: null },
      env: { HOME: home },
    });

    const passFile = at('by pgpass', 'main', 'pgcloned.pgpass');
    expect(conninfo).toContain(passFile);
    expect(conninfo).not.toContain(source.password);
    expect((await stat(passFile)).mode & 0o777).toBe(0o600);
    expect(await readFile(passFile, 'utf8')).toContain(source.password);
  });

  test('where the server asks for no password, none is needed', async () => {
    const { primary } = source;
    await primary.query('CREATE ROLE trusted LOGIN REPLICATION');
    await primary.query('GRANT pg_monitor TO trusted');
    await primary.query(
      'GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO trusted',
    );
    const hba = join(primary.dataDirectory, 'pg_hba.conf');
    const trust = ['all', 'replication'].map((what) => `host ${what} trusted 127.0.0.1/32 trust\n`);
    await writeFile(hba, `${trust.join('')}${await readFile(hba, 'utf8')}`);
    await primary.query('SELECT pg_reload_conf()');

    const { conninfo } = await expectStandby('by trust', {
      source: { user: 'trusted', passFile: null },
      env: { HOME: await homeWith('home trust', {}) },
    });

    expect(conninfo).not.toContain('passfile');
  });

  const sshWithoutKey = () => ({ user: source.sshd.user, port: source.sshd.port });

  test('the keys and known hosts of ~/.ssh are used where none is named', async () => {
    const home = await homeWith('home keys', {
      '.ssh/id_ed25519': await readFile(source.sshd.privateKeyFile, 'utf8'),
    });
    await writePartsFile(
      join(home, '.ssh', 'known_hosts'),
      await readFile(source.sshd.knownHostsFile, 'utf8'),
    );

    const ended = await runClone(
      source,
      { source: { ssh: sshWithoutKey() }, target: { dataDirectory: at('by key', 'main') } },
      { env: { HOME: home } },
    );

    expect(ended.error).toBeUndefined();
    await expectNothingLeft(ended, 'by key');
  });

  test('an agent is asked for its keys', async () => {
    const socket = at('agent');
    const [file = '', ...args] = asPartsUser(['ssh-agent', '-D', '-a', socket]);
    const agent = await startProcess({ file, args, env: partsEnvironment });
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      await agent.stop();
    });
    await expect.poll(() => existsSync(socket)).toBe(true);
    await runAsPartsUser(['ssh-add', '-q', source.sshd.privateKeyFile], {
      env: { SSH_AUTH_SOCK: socket },
    });

    const ended = await runClone(
      source,
      {
        source: { ssh: { ...sshWithoutKey(), knownHostsFile: source.sshd.knownHostsFile } },
        target: { dataDirectory: at('by agent', 'main') },
      },
      { env: { HOME: await homeWith('home agent', {}), SSH_AUTH_SOCK: socket } },
    );

    expect(ended.error).toBeUndefined();
    await expectNothingLeft(ended, 'by agent');
  });

  test('an unchecked host key is a warning in the result, and only where it was asked for', async () => {
    const { privateKeyFile, wrongKnownHostsFile: knownHostsFile } = source.sshd;

    const ended = await runClone(source, {
      source: { ssh: { ...sshWithoutKey(), privateKeyFile, knownHostsFile, insecure: true } },
      target: { dataDirectory: at('unchecked', 'main') },
    });

    expect(ended.error).toBeUndefined();
    expect(ended.result.result.warnings).toContainEqual(
      expect.stringContaining('was not checked (ssh.insecure)'),
    );
  });
});

test('two clones of one primary into two targets run at once, and share nothing', async () => {
  const names = ['one of two', 'two of two'];

  const clones = await Promise.all(
    names.map(
      async (name) =>
        await startClone(source, { target: { dataDirectory: at(name, 'main') }, transfer: SLOW }),
    ),
  );
  await Promise.all(clones.map(async ({ reached }) => await reached('copy-files')));
  const slots = await source.primary.query('SELECT slot_name FROM pg_replication_slots');
  const ended = await Promise.all(clones.map(async (clone) => await clone.ended));

  expect(slots).toHaveLength(2);
  for (const [index, { error }] of ended.entries()) {
    expect(error).toBeUndefined();
    await using standby = await startCluster(at(names[index] ?? '', 'main'));
    expect(await standby.query('SELECT id FROM answers')).toEqual([{ id: 42 }]);
  }
  for (const [index, one] of ended.entries()) await expectNothingLeft(one, names[index] ?? '');
});

describe('progress', () => {
  const show = async (name: string, mode: string) => {
    await writePartsFile(
      at(`${name}.json`),
      JSON.stringify({
        source: source.configuration,
        target: { dataDirectory: at(name, 'main') },
        transfer: SLOW,
      }),
    );
    return await runAsPartsUser(
      [
        ...[process.execPath, PGCLONED, 'run', '--file', at(`${name}.json`)],
        ...['--progress', mode, '--progress-interval', '0.2'],
      ],
      { accept: 'any' },
    );
  };

  test('plain is a line for each phase, and more while the copy goes on', async () => {
    const { status, stdout, stderr } = await show('plain', 'plain');

    expect(status).toBe(0);
    for (const phase of ['preflight', 'stream-wal', 'copy-files', 'publish'])
      expect(stderr).toMatch(new RegExp(`^\\S+Z ${phase}: done after `, 'm'));
    expect(stderr.match(/^\S+Z copy-files: [\d.]+ \w+ of [\d.]+ MB/gm)?.length).toBeGreaterThan(2);
    expect(stderr).not.toContain('\r');
    expect(stdout.toString()).toContain(at('plain', 'main'));
  });

  test('bar is one only on a terminal, which apps/cli tests; elsewhere it is plain', async () => {
    const { status, stdout, stderr } = await show('bar', 'bar');

    expect(status).toBe(0);
    expect(stderr).toMatch(/^\S+Z copy-files: done after /m);
    expect(stdout.toString()).toContain(at('bar', 'main'));
  });

  test('none is silence until the end', async () => {
    const { status, stdout, stderr } = await show('none', 'none');

    expect(status).toBe(0);
    expect(stderr).toBe('');
    expect(stdout.toString()).toContain(at('none', 'main'));
  });
});

test('temporary WAL is kept where that is asked for', async () => {
  const { error, name } = await runClone(
    source,
    { target: { dataDirectory: at('kept', 'main') } },
    { arguments: ['--keep-temporary'] },
  );

  expect(error).toBeUndefined();
  const id = name.replace('pgcloned_', '');
  expect((await readdir(at('kept'))).toSorted()).toEqual(['main', `main.pgcloned-wal-${id}`]);
});

describe('what breaks in the middle', () => {
  const copying = async (name: string): Promise<Running> => {
    const running = await startClone(source, {
      target: { dataDirectory: at(name, 'main') },
      transfer: SLOW,
    });
    await running.reached('copy-files');
    return running;
  };

  test('an rsync that is told to end costs one batch, and the clone succeeds', async () => {
    const running = await copying('terminated');
    await expect
      .poll(
        async () => {
          const children = descendantsOf(running.process.pid, await listProcesses());
          const rsync = children.find(({ args }) => /^rsync .*--files-from/.test(args));
          if (rsync !== undefined) process.kill(rsync.pid, 'SIGTERM');
          return rsync !== undefined;
        },
        { interval: 20 },
      )
      .toBe(true);

    const ended = await running.ended;

    expect(ended.error).toBeUndefined();
    expect(ended.messages.join('\n')).toContain('a batch broke off and is sent again');
    await using standby = await startCluster(at('terminated', 'main'));
    expect(await standby.query('SELECT id FROM answers')).toEqual([{ id: 42 }]);
    await expectNothingLeft(ended, 'terminated', [standby.pid]);
  });

  test('a crash of the primary costs an attempt, and its slot is gone when the primary is back', async () => {
    const running = await copying('crash');
    const slots = async () =>
      await source.primary.query('SELECT slot_name, temporary FROM pg_replication_slots');
    expect(await slots()).toEqual([{ slot_name: `${running.name()}_1`, temporary: true }]);

    await source.primary.stop('immediate');
    expect(existsSync(at('crash', 'main', 'global', 'pg_control'))).toBe(false);
    await source.primary.start();
    expect(await slots()).not.toContainEqual(
      expect.objectContaining({ slot_name: `${running.name()}_1` }),
    );
    const ended = await running.ended;

    expect(ended.error).toBeUndefined();
    expect(ended.messages.join('\n')).toContain('attempt 2');
    await using standby = await startCluster(at('crash', 'main'));
    expect(await standby.query('SELECT id FROM answers')).toEqual([{ id: 42 }]);
    await expectNothingLeft(ended, 'crash', [standby.pid]);
  });

  test('a deadline that passes ends the clone', async () => {
    // Whatever phase it has come to by then: a busy machine may need that long to begin.
    const ended = await runClone(source, {
      target: { dataDirectory: at('deadline', 'main') },
      transfer: { maxRate: 1_000_000 },
      deadline: new Date(Date.now() + 8_000).toISOString(),
    });

    expect(ended.error).toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      hint: 'Ask for a later deadline, more workers or a higher rate.',
    });
    expect(ended.status).toBe(8);
    await expectNothingLeft(ended, 'deadline');
  });
});

describe('the rsync daemon', () => {
  test('listens on a port of the range that was configured', async () => {
    const port = await freePort();
    const running = await startClone(source, {
      source: { rsyncd: { ports: `${String(port)}-${String(port)}` } },
      target: { dataDirectory: at('port', 'main') },
      transfer: SLOW,
    });
    await running.reached('copy-files');
    await expect
      .poll(async () =>
        (await listProcesses()).some(({ args }) =>
          new RegExp(`^rsync --daemon .*${running.name()}.* --port=${String(port)}$`).test(args),
        ),
      )
      .toBe(true);

    expect((await running.ended).error).toBeUndefined();
  });

  test('that finds no free port in its range ends the clone at once, and says what to do', async () => {
    const taken = createServer();
    const port = await freePort();
    await new Promise<void>((resolve) => taken.listen(port, '127.0.0.1', resolve));

    const ended = await runClone(source, {
      source: { rsyncd: { ports: `${String(port)}-${String(port)}` } },
      target: { dataDirectory: at('no port', 'main') },
    });

    taken.close();
    expect(ended.error).toMatchObject({
      code: 'RSYNCD_FAILED',
      phase: 'copy-files',
      message: 'no port of the range is free on the source host',
      hint: expect.stringContaining('rsyncd.ports'),
    });
    await expectNothingLeft(ended, 'no port');
  });
});

/** The database has the locale, the server speaks its language, and so does whoever clones. */
describe.each(['C', 'en_US.UTF-8', 'ru_RU.UTF-8'])('in the locale %s', (locale) => {
  const [definition = ''] = locale.split('.');
  const isThere = locale === 'C' || existsSync(`/usr/share/i18n/locales/${definition}`);

  test.skipIf(!isThere)('a clone is made, and tells its errors in its own words', async () => {
    await using parts = new AsyncDisposableStack();
    const { path } = parts.use(await scratchDirectory());
    const binDirectory = await programsThatKnow(locale, path);
    const local = parts.use(
      await startSource({
        binDirectory,
        ownIdentity: true,
        initdbArgs: [`--locale=${locale}`, '--encoding=UTF8'],
        settings: { lc_messages: locale },
      }),
    );
    await local.primary.query("CREATE TABLE words AS SELECT 'ёлка' AS word");
    await local.primary.query('CREATE INDEX ON words (word)');
    const env = { LC_ALL: locale, LANG: locale, LOCPATH: path };
    const dataDirectory = join(path, 'clone', 'main');

    const made = await runClone(local, { target: { dataDirectory } }, { env });
    const refused = await runClone(
      local,
      { source: { user: 'nobody' }, target: { dataDirectory: join(path, 'refused') } },
      { env },
    );

    expect(made.error).toBeUndefined();
    expect(refused.error).toMatchObject({
      code: 'SOURCE_AUTHENTICATION_FAILED',
      message: expect.stringContaining('does not admit nobody to database postgres'),
      hint: expect.stringContaining('host postgres nobody 127.0.0.1/32'),
    });
    await using standby = await startCluster(dataDirectory, { binDirectory });
    await waitForReplay(local.primary, standby);
    expect(await compareTables(local.primary, standby)).toEqual([]);
    expect(
      await leftBehind({ names: [made.name, refused.name], servers: [local.primary] }),
    ).toEqual([]);
  });
});

/** Programs of PostgreSQL that find a locale which the machine itself need not have. */
async function programsThatKnow(locale: string, path: string): Promise<string> {
  const real = findPostgres();
  if (locale === 'C') return real;
  const [definition = '', encoding = ''] = locale.split('.');
  await runAsPartsUser(['localedef', '-i', definition, '-f', encoding, join(path, locale)]);
  // The test bed reads the major version from the path.
  const directory = join(path, /\d+\/bin$/.exec(real)?.[0] ?? '');
  await makeDirectory(directory);
  for (const program of readdirSync(real)) {
    await writeFile(
      join(directory, program),
      `#!/bin/sh\nLOCPATH='${path}' exec '${real}/${program}' "$@"\n`,
      { mode: 0o755 },
    );
  }
  return directory;
}
