/**
 * Servers that are started as the worker starts them: by a process that runs as their user and may die at any time.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, chown, mkdir, readFile, readlink, rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import {
  adoptServer,
  asPartsUser,
  configuredPostgresBin,
  descendantsOf,
  findPostgres,
  listProcesses,
  makeDirectory,
  type PostgresServer,
  partsEnvironment,
  partsUser,
  runsAsRoot,
  scratchDirectory,
  startPrimary,
  writePartsFile,
} from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { isServerRunning, type StartServerOptions, startServer } from '../src/index.ts';

const binDirectory = findPostgres();
const major = Number(/(\d+)\/bin$/.exec(binDirectory)?.[1]);
const { signal } = new AbortController();

interface Answer {
  readonly value?: { readonly pid: number; readonly port: number; readonly status: string };
  readonly error?: {
    readonly code: string;
    readonly message: string;
    readonly hint: string;
    readonly facts: Readonly<Record<string, string>>;
  };
}

interface Caller extends AsyncDisposable {
  readonly answer: Answer;
  readonly process: ChildProcess;
}

async function call(
  name: 'startServer' | 'stopServer' | 'isServerRunning',
  options: Partial<StartServerOptions>,
): Promise<Caller> {
  const fixture = fileURLToPath(new URL('fixtures/calls.ts', import.meta.url));
  const [file = '', ...args] = asPartsUser(
    [process.execPath, fixture, name, JSON.stringify(options)],
    'TERM',
  );
  const child = spawn(file, args, {
    cwd: '/',
    env: partsEnvironment,
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
  return {
    answer: JSON.parse(line) as Answer,
    process: child,
    [Symbol.asyncDispose]: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, 'exit');
      process.kill(-(child.pid ?? 0), 'SIGKILL');
      await exited;
    },
  };
}

/** A cluster that does not run, with what it takes to start it. */
async function stoppedCluster(
  options: Parameters<typeof startPrimary>[0] = {},
): Promise<{ server: PostgresServer; options: Omit<StartServerOptions, 'signal'> }> {
  const server = await startPrimary(options);
  await server.stop();
  return {
    server,
    options: {
      method: { method: 'pg_ctl' },
      binDirectory,
      dataDirectory: server.dataDirectory,
      configFile: null,
      major,
      port: server.port,
      logFile: join(dirname(server.logFile), 'started.log'),
      stallMs: 30_000,
    },
  };
}

test('a server outlives the process group that started it and holds none of its pipes', async () => {
  const { server, options } = await stoppedCluster();
  await using _ = server;
  await using caller = await call('startServer', options);
  const { pid = 0 } = caller.answer.value ?? {};
  expect(caller.answer.value).toMatchObject({ port: server.port, status: 'ready' });

  const exited = once(caller.process, 'exit');
  process.kill(-(caller.process.pid ?? 0), 'SIGKILL');
  await exited;

  expect(await server.query('SELECT 1 AS one')).toEqual([{ one: 1 }]);
  expect((await isServerRunning(server.dataDirectory))?.pid).toBe(pid);
  expect(await sessionOf(pid)).toBe(pid);
  expect(await outputsOf(pid)).toEqual([options.logFile, options.logFile]);
  expect(await readFile(options.logFile, 'utf8')).toContain('database system is ready to accept');
});

test('a path that a shell would act upon is only a path', async () => {
  await using scratch = await scratchDirectory();
  const odd = join(scratch.path, `a "b" $(touch pwned) \`touch pwned\` 'c' \\d`);
  const { server, options } = await stoppedCluster();
  await using _ = server;
  await makeDirectory(odd);
  const dataDirectory = join(odd, 'data');
  await rename(server.dataDirectory, dataDirectory);
  const oddly = { ...options, dataDirectory, logFile: join(odd, 'a $(touch pwned).log') };

  await using caller = await call('startServer', oddly);

  expect(caller.answer.value).toMatchObject({ status: 'ready' });
  const { pid = 0 } = caller.answer.value ?? {};
  expect((await readFile(`/proc/${String(pid)}/cmdline`, 'utf8')).split('\0').slice(1, 3)).toEqual([
    '-D',
    dataDirectory,
  ]);
  await using stopper = await call('stopServer', oddly);
  expect(stopper.answer).toEqual({});
  expect(await isServerRunning(dataDirectory)).toBeNull();
});

test('a server finds its configuration outside of its data directory', async () => {
  await using scratch = await scratchDirectory();
  const configurationDirectory = join(scratch.path, "it's etc");
  const { server, options } = await stoppedCluster({ configurationDirectory });
  await using _ = server;

  await using caller = await call('startServer', { ...options, configFile: server.configFile });

  expect(caller.answer.value).toMatchObject({ status: 'ready' });
  expect(await server.query('SHOW config_file')).toEqual([{ config_file: server.configFile }]);
});

test('a server that cannot start says why in its own last words', async () => {
  const { server, options } = await stoppedCluster();
  await using _ = server;
  await server.start();
  await server.query(`ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'`);
  await server.stop();

  await using caller = await call('startServer', options);

  expect(caller.answer.error).toMatchObject({
    code: 'REPLICA_START_FAILED',
    hint: expect.stringContaining(options.logFile),
    facts: { log: expect.stringContaining('could not access file "no_such_library"') },
  });
  expect(await isServerRunning(server.dataDirectory)).toBeNull();
});

test('a server that runs already is left alone', async () => {
  const { server, options } = await stoppedCluster();
  await using _ = server;
  await server.start();

  await using caller = await call('startServer', options);

  expect(caller.answer.error).toMatchObject({ code: 'TARGET_IN_USE', facts: { pid: server.pid } });
  expect(await server.query('SELECT 1 AS one')).toEqual([{ one: 1 }]);
});

test('stopping ends sessions and loses nothing, and stopping again does nothing', async () => {
  const { server, options } = await stoppedCluster();
  await using _ = server;
  await using starter = await call('startServer', options);
  expect(starter.answer.value?.port).toBe(server.port);
  await using adopted = await adoptServer(server.dataDirectory);
  await adopted.query('CREATE TABLE t AS SELECT 1 AS one');

  await using stopper = await call('stopServer', options);
  await using again = await call('stopServer', options);

  expect([stopper.answer, again.answer]).toEqual([{}, {}]);
  expect(await isServerRunning(server.dataDirectory)).toBeNull();
  await server.start();
  expect(await server.query('SELECT one FROM t')).toEqual([{ one: 1 }]);
});

test('a command of the operator gets directory, port and major version as plain arguments', async () => {
  const { server, options } = await stoppedCluster();
  await using _ = server;
  const command = asPartsUser([
    ...['env', 'SEEN={major} {port} {other}', join(binDirectory, 'pg_ctl')],
    ...['start', '-D', '{dataDirectory}', '--silent', '-o', '-c cluster_name=p{port}'],
  ]);

  const started = await startServer({ ...options, method: { command }, signal });

  expect(started).toMatchObject({ port: server.port, dataDirectory: server.dataDirectory });
  expect(await server.query('SHOW cluster_name')).toEqual([
    { cluster_name: `p${String(server.port)}` },
  ]);
  const environment = await readFile(`/proc/${String(started.pid)}/environ`, 'latin1');
  expect(environment.split('\0')).toContain(`SEEN=${String(major)} ${String(server.port)} {other}`);
});

test('a command that is not there or fails is told apart', async () => {
  await using scratch = await scratchDirectory();
  const { server, options } = await stoppedCluster();
  await using _ = server;
  const logFile = join(scratch.path, 'log');
  const start = async (...command: [string, ...string[]]) =>
    await startServer({ ...options, logFile, method: { command }, signal });

  await expect(start('/no/such/program')).rejects.toMatchObject({ code: 'TOOL_MISSING' });
  await expect(start('sh', '-c', 'echo no such unit >&2; exit 5')).rejects.toMatchObject({
    code: 'REPLICA_START_FAILED',
    facts: { exitStatus: 5, log: 'no such unit' },
  });
});

test('after a restart of the host a server starts although its pid belongs to another program of ours by now', async () => {
  const { server, options } = await stoppedCluster({ settings: { unix_socket_directories: '.' } });
  await using _ = server;
  const { dataDirectory } = server;
  const lockFiles = [
    join(dataDirectory, 'postmaster.pid'),
    join(dataDirectory, `.s.PGSQL.${String(server.port)}.lock`),
  ];
  await using other = await call('isServerRunning', options);
  await server.start();
  const contents = await Promise.all(lockFiles.map(async (path) => await readFile(path, 'utf8')));
  await server.stop();
  const { pid = 0 } = other.process;
  for (const [index, path] of lockFiles.entries())
    await writePartsFile(path, (contents[index] ?? '').replace(/^\d+/, String(pid)));
  expect(await isServerRunning(dataDirectory)).toBeNull();

  await using caller = await call('startServer', options);

  expect(caller.answer.error).toBeUndefined();
  expect(caller.answer.value).toMatchObject({ port: server.port });
  expect(existsSync(`/proc/${String(pid)}`)).toBe(true);
});

test.runIf(runsAsRoot)(
  'the program of another user is no server of ours, but in doubt it is one of theirs',
  async () => {
    await using scratch = await scratchDirectory();
    // Process 1 is alive, and an ordinary user may neither signal it nor see where it works.
    const write = async (startedAt: string) => {
      const lines = ['1', scratch.path, startedAt, '5432', '', '', '', 'ready', ''];
      await writeFile(join(scratch.path, 'postmaster.pid'), lines.join('\n'));
    };
    await write(String(Math.floor(Date.now() / 1000)));
    await using inContainer = await call('isServerRunning', { dataDirectory: scratch.path });
    await write('1700000000');

    await using ofOurs = await call('isServerRunning', { dataDirectory: scratch.path });
    await chown(scratch.path, 0, 0);
    await chmod(scratch.path, 0o755);
    await using ofTheirs = await call('isServerRunning', { dataDirectory: scratch.path });

    expect(inContainer.answer.value).toMatchObject({ pid: 1 });
    expect(ofOurs.answer.value).toBeNull();
    expect(ofTheirs.answer.value).toMatchObject({ pid: 1 });
  },
);

test.runIf(runsAsRoot)('a data directory of another user is refused by name', async () => {
  await using scratch = await scratchDirectory();
  const dataDirectory = join(scratch.path, 'closed');
  await mkdir(dataDirectory, { mode: 0o700 });

  await using caller = await call('isServerRunning', { dataDirectory });

  expect(caller.answer.error).toMatchObject({
    code: 'TARGET_NOT_WRITABLE',
    facts: { path: join(dataDirectory, 'postmaster.pid') },
  });
});

test.each([
  ['before it has begun', async () => await Promise.resolve()],
  ['while it runs', untilSleeping],
])('a start that is aborted %s ends, and its command with it', async (_when, until) => {
  await using scratch = await scratchDirectory();
  const { server, options } = await stoppedCluster();
  await using _ = server;
  const controller = new AbortController();
  const starting = startServer({
    ...options,
    logFile: join(scratch.path, 'log'),
    method: { command: ['sleep', '600'] },
    signal: controller.signal,
  });
  const failing = expect(starting).rejects.toThrow('the user cancelled');
  await until();

  controller.abort(new Error('the user cancelled'));

  await failing;
  expect(await sleepers()).toEqual([]);
});

const sleepers = async () =>
  descendantsOf(process.pid, await listProcesses()).filter(({ args }) => args === 'sleep 600');

async function untilSleeping(): Promise<void> {
  await expect.poll(sleepers).toHaveLength(1);
}

test('a directory that Debian knows no cluster of is refused with what to write', async () => {
  const { server, options } = await stoppedCluster();
  await using _ = server;

  await expect(
    startServer({ ...options, method: { method: 'pg_ctlcluster' }, signal }),
  ).rejects.toMatchObject({
    code: 'REPLICA_START_FAILED',
    hint: expect.stringContaining(`data_directory = '${server.dataDirectory}'`),
  });
});

test.runIf(runsAsRoot && configuredPostgresBin === null)(
  'a cluster of Debian is started by its name',
  async () => {
    const name = `pgcloned_test_${String(process.pid)}`;
    const configurationDirectory = `/etc/postgresql/${String(major)}/${name}`;
    await rm(configurationDirectory, { recursive: true, force: true });
    await mkdir(configurationDirectory, { recursive: true });
    await chown(configurationDirectory, partsUser.uid, partsUser.gid);
    try {
      const { server, options } = await stoppedCluster({ configurationDirectory });
      await using _ = server;

      await using caller = await call('startServer', {
        ...options,
        configFile: server.configFile,
        method: { method: 'pg_ctlcluster' },
      });

      expect(caller.answer).toMatchObject({ value: { port: server.port } });
      expect(await server.query('SHOW config_file')).toEqual([{ config_file: server.configFile }]);
      await using stopper = await call('stopServer', options);
      expect(stopper.answer).toEqual({});
    } finally {
      await rm(configurationDirectory, { recursive: true, force: true });
      await rm(`/var/log/postgresql/postgresql-${String(major)}-${name}.log`, { force: true });
    }
  },
);

/** Field 6 of /proc/PID/stat, behind the name that may hold blanks. */
async function sessionOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${String(pid)}/stat`, 'utf8');
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[3]);
}

async function outputsOf(pid: number): Promise<readonly string[]> {
  return await Promise.all([1, 2].map((fd) => readlink(`/proc/${String(pid)}/fd/${String(fd)}`)));
}
