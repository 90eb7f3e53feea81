/** The parts start, answer, restart and leave nothing. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { runProcess } from '@pgcloned/process';
import { expect, onTestFinished, test, vi } from 'vitest';
import {
  adoptServer,
  otherHost,
  partsUser,
  runAsPartsUser,
  runsAsRoot,
  scratchDirectory,
  startCluster,
  startPrimary,
  startRedis,
  startSource,
  startSshd,
  stopServer,
} from '../src/index.ts';

const { signal } = new AbortController();

test('a scratch directory belongs to the user of the parts and is gone afterwards', async () => {
  let path = '';
  {
    await using scratch = await scratchDirectory();
    path = scratch.path;
    expect((await stat(path)).uid).toBe(partsUser.uid);
  }
  expect(existsSync(path)).toBe(false);
});

test('a primary takes connections over its socket and over loopback', async () => {
  await using primary = await startPrimary({ settings: { work_mem: '5MB' } });

  const rows = await primary.query('show work_mem');
  const { stdout } = await runProcess(
    {
      file: join(primary.binDirectory, 'psql'),
      args: ['-XAtc', 'show data_checksums', '-h', '127.0.0.1', '-p', String(primary.port)],
      env: { PGUSER: 'postgres' },
    },
    { signal },
  );

  expect(rows).toEqual([{ work_mem: '5MB' }]);
  expect(stdout.toString()).toBe('on\n');
});

test('a primary can be stopped and started, and is gone with its files afterwards', async () => {
  const primary = await startPrimary();
  await primary.stop();
  expect(primary.pid).toBe(0);
  await primary.start();
  const { pid } = primary;

  await primary[Symbol.asyncDispose]();

  expect(existsSync(`/proc/${String(pid)}`)).toBe(false);
  expect(existsSync(dirname(primary.dataDirectory))).toBe(false);
});

test('two primaries differ in their system identifier if one asks for its own', async () => {
  await using first = await startPrimary();
  await using second = await startPrimary({ ownIdentity: true });

  const identify = 'select system_identifier::text from pg_control_system()';

  expect(await first.query(identify)).not.toEqual(await second.query(identify));
});

test('a primary is laid out as asked: configuration, WAL and a tablespace outside PGDATA', async () => {
  await using scratch = await scratchDirectory();
  await using primary = await startPrimary({
    dataDirectory: join(scratch.path, 'lib', 'my data'),
    walDirectory: join(scratch.path, 'wal', 'my wal'),
    configurationDirectory: join(scratch.path, 'etc', 'main'),
  });
  await primary.createTablespace('my space', join(scratch.path, 'my tablespace'));

  expect(existsSync(join(primary.dataDirectory, 'postgresql.conf'))).toBe(false);
  expect(existsSync(join(scratch.path, 'wal', 'my wal', 'archive_status'))).toBe(true);
  expect(
    await primary.query(
      "select pg_tablespace_location(oid) l from pg_tablespace where spcname = 'my space'",
    ),
  ).toEqual([{ l: join(scratch.path, 'my tablespace') }]);
});

test('a server that someone else started can be adopted and stopped', async () => {
  await using scratch = await scratchDirectory();
  const dataDirectory = join(scratch.path, 'data');
  await using primary = await startPrimary({ dataDirectory });

  await using adopted = await adoptServer(dataDirectory);
  expect(await adopted.query('select 1 as one')).toEqual([{ one: 1 }]);
  await adopted.stop();

  await expect(primary.query('select 1')).rejects.toThrow();
});

test('the server of a directory can be ended, and where there is none nothing happens', async () => {
  await using primary = await startPrimary();
  const { pid } = primary;

  await stopServer(primary.dataDirectory);
  await stopServer(primary.dataDirectory);
  await stopServer('/nonexistent');

  expect(existsSync(`/proc/${String(pid)}`)).toBe(false);
});

test('a stopped cluster can be started on another port', async () => {
  await using scratch = await scratchDirectory();
  const dataDirectory = join(scratch.path, 'data');
  await using primary = await startPrimary({ dataDirectory });
  await primary.stop();

  await using again = await startCluster(dataDirectory);

  expect(await again.query('show port')).toEqual([{ port: String(again.port) }]);
});

test('a cluster that is none is not started, and nothing is left of the attempt', async () => {
  await using scratch = await scratchDirectory();
  vi.stubEnv('TMPDIR', scratch.path);
  onTestFinished(() => {
    vi.unstubAllEnvs();
  });

  await expect(startCluster('/nonexistent')).rejects.toThrow('PG_VERSION');

  expect(await readdir(scratch.path)).toEqual([]);
});

test('a source has a role that comes in by password, for SQL and for replication', async () => {
  await using source = await startSource();
  const psql = async (PGPASSFILE: string, database: string, command: string) => {
    const { host, port, user } = source.configuration;
    const conninfo = `host=${host} port=${String(port)} user=${user} ${database}`;
    const { stdout, stderr } = await runAsPartsUser(
      [join(source.primary.binDirectory, 'psql'), '-XAtc', command, conninfo],
      { env: { PGPASSFILE }, accept: 'any' },
    );
    return `${stdout.toString()}${stderr}`.trim();
  };

  expect(await psql(source.passFile, 'dbname=postgres', 'show data_directory')).toBe(
    source.primary.dataDirectory,
  );
  expect(await psql(source.passFile, 'replication=true', 'IDENTIFY_SYSTEM')).toContain('|1|');
  expect(await psql('/dev/null', 'dbname=postgres', 'select')).toContain('no password supplied');
});

test('an sshd lets its key in, and no other', async () => {
  await using sshd = await startSshd();
  const ssh = (keyFile: string) =>
    runProcess(
      {
        file: 'ssh',
        args: [
          ...['-F', 'none', '-i', keyFile, '-p', String(sshd.port), '-o', 'IdentitiesOnly=yes'],
          ...['-o', `UserKnownHostsFile=${sshd.knownHostsFile}`, '-o', 'BatchMode=yes'],
          ...[`${sshd.user}@${sshd.host}`, 'id -un'],
        ],
        env: {},
      },
      { signal, accept: 'any' },
    );

  expect((await ssh(sshd.privateKeyFile)).stdout.toString()).toBe(`${partsUser.name}\n`);
  expect((await ssh(sshd.otherKeyFile)).stderr).toContain('Permission denied');
});

test('redis keeps its data over a restart, and forgets them when flushed', async () => {
  await using redis = await startRedis();
  const cli = async (...args: string[]) => {
    const { stdout } = await runProcess(
      { file: 'redis-cli', args: ['-s', redis.socket, ...args], env: {} },
      { signal },
    );
    return stdout.toString().trim();
  };

  await cli('SET', 'key', 'value');
  await redis.stop();
  await redis.start();
  expect(await cli('GET', 'key')).toBe('value');
  await redis.flush();
  expect(await cli('GET', 'key')).toBe('');
});

test('the parts die with the process that started them', async () => {
  // Nobody removes the files of parts that died like this, so they lie where we do.
  await using scratch = await scratchDirectory();
  const script = `
    import { startPrimary, startRedis, startSshd } from ${JSON.stringify(join(import.meta.dirname, '../src/index.ts'))};
    const parts = [await startPrimary(), await startRedis(), await startSshd()];
    console.log(parts.map(({ pid }) => pid).join(' '));
    setInterval(() => {}, 1000);
  `;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { TMPDIR: scratch.path },
  });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const pids = line.toString().trim().split(' ');

  child.kill('SIGKILL');

  while (pids.some((pid) => existsSync(`/proc/${pid}`))) await delay(20);
  expect(pids).toHaveLength(3);
});

test.skipIf(!runsAsRoot)(
  'the cable to another host, which takes root to imitate, can be cut in silence, mended, and reset',
  async () => {
    await using host = await otherHost();
    const server = createServer((socket) => {
      socket.on('error', () => {});
      socket.pipe(socket);
    });
    server.listen(0, host.address);
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const script = `const socket = require('net').connect(${String(port)}, '${host.address}');
      socket.on('error', ({ code }) => console.log(code)).on('close', () => process.exit());
      process.stdin.pipe(socket).pipe(process.stdout, { end: false });`;
    const [file = '', ...args] = host.on([process.execPath, '--eval', script]);
    const client = spawn(file, args);
    const heard: string[] = [];
    client.stdout.on('data', (data: Buffer) => heard.push(data.toString()));
    const untilHeard = async (text: string) => {
      while (!heard.join('').includes(text)) await delay(10, null, { signal });
    };

    client.stdin.write('before\n');
    await untilHeard('before');
    await host.cut();
    client.stdin.write('cut\n');
    // Longer than the way there and back, by far.
    await delay(300);
    const heardWhileCut = heard.join('');
    await host.mend();
    await untilHeard('cut');
    await host.reset();
    await untilHeard('ECONNRESET');
    server.close();

    expect(heardWhileCut).toBe('before\n');
  },
);
