/**
 * The daemon on its lease, with real shells, real rsyncs and real deaths.
 *
 * The remote host has a temporary directory of its own, and every process of the daemon has the clone's name in its
 * arguments, so "nothing is left" is checked by looking at both.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmod, chown, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  freePort,
  listProcesses,
  makeDirectory,
  partsUser,
  runAsPartsUser,
  runsAsRoot,
  type ScratchDirectory,
  type SshServer,
  scratchDirectory,
  startSshd,
} from '@pgcloned/testbed';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  type DaemonRequest,
  type RsyncDaemon,
  startDaemon,
  sweepHost,
  transfer,
} from '../src/index.ts';
import { type LocalRunner, localRunner, remoteTemporary } from './local-runner.ts';

const FIXTURE = new URL('./fixtures/holds-a-daemon.ts', import.meta.url).pathname;

let scratch: ScratchDirectory;
let name: string;
let request: DaemonRequest;

beforeEach(async () => {
  scratch = await scratchDirectory();
  name = `pgcloned_${randomBytes(16).toString('hex')}_1`;
  await makeDirectory(join(scratch.path, 'pgdata'));
  await makeDirectory(join(scratch.path, 'here'));
  await writeFile(join(scratch.path, 'pgdata/PG_VERSION'), '15\n');
  request = {
    name,
    modules: [{ name: 'pgdata', path: join(scratch.path, 'pgdata') }],
    connectAddress: '127.0.0.1',
    bindAddress: null,
    ports: { first: 45_000, last: 45_999 },
    connectionsMax: 3,
    leaseMs: 10_000,
    directory: scratch.path,
    signal: new AbortController().signal,
  };
});

afterEach(async () => {
  const left = await leftOnHost();
  for (const { pid } of await processes()) process.kill(pid, 'SIGKILL');
  await scratch[Symbol.asyncDispose]();
  expect(left).toEqual([]);
});

const processes = async () =>
  (await listProcesses()).filter(({ args }) => args.includes(name) || args.includes(FIXTURE));

async function leftOnHost(): Promise<string[]> {
  const files = await readdir(remoteTemporary(scratch.path)).catch(() => []);
  return [...files, ...(await processes()).map(({ args }) => args)];
}

/** Polls until the host is clean; a test that waits in vain fails by its time limit. */
async function hostIsClean(): Promise<void> {
  while ((await leftOnHost()).length > 0) await delay(50);
}

async function fetchVersion(daemon: RsyncDaemon, change: Partial<RsyncDaemon> = {}) {
  return await transfer({
    endpoint: { kind: 'daemon', ...daemon, ...change, module: 'pgdata' },
    names: ['PG_VERSION'],
    destination: join(scratch.path, 'here'),
    compression: 'none',
    compare: 'ignore-times',
    send: 'whole',
    timeoutMs: 10_000,
    inheritedFds: [],
    onBytes: () => {},
    onWireBytes: () => {},
    signal: new AbortController().signal,
  });
}

describe.each(['dash', 'bash'] as const)('with %s', (shell) => {
  let runner: LocalRunner;

  beforeEach(async () => {
    runner = await localRunner({ directory: scratch.path, shell });
  });

  test('a stopped daemon has left nothing when stop settles', async () => {
    const daemon = await startDaemon(runner, request);
    await fetchVersion(daemon);

    await daemon.stop(request.signal);

    expect(await readFile(join(scratch.path, 'here/PG_VERSION'), 'utf8')).toBe('15\n');
    expect(await leftOnHost()).toEqual([]);
    await daemon.stop(request.signal);
  });

  test('the heartbeat keeps it beyond its lease', async () => {
    await using daemon = await startDaemon(runner, { ...request, leaseMs: 2_000 });

    await delay(4_000);

    await fetchVersion(daemon);
  });

  test('an engine that is killed takes it along, with transfers that run', async () => {
    const { engine, daemon } = await startEngine(shell, 60_000);
    const transferring = await startSlowTransfer(daemon);

    engine.kill('SIGKILL');

    await once(transferring, 'exit');
    await hostIsClean();
  });

  test('an engine that freezes loses it when the lease is over', async () => {
    const { engine, daemon } = await startEngine(shell, 2_000);
    const transferring = await startSlowTransfer(daemon);

    engine.kill('SIGSTOP');

    await once(transferring, 'exit');
    await hostIsCleanButFor(engine);
    engine.kill('SIGKILL');
    await once(engine, 'exit');
  });

  test('a main shell that is killed leaves nothing, and the loss is told', async () => {
    const daemon = await startDaemon(runner, request);

    process.kill(runner.pid(), 'SIGKILL');

    expect(await daemon.lost).toMatchObject({ code: 'SOURCE_LOST' });
    await hostIsClean();
    await expect(daemon.stop(request.signal)).rejects.toMatchObject({ code: 'SOURCE_LOST' });
  });

  test('a guard that was killed is not needed for an orderly end', async () => {
    const daemon = await startDaemon(runner, request);
    const directory = await privateDirectory();
    process.kill(Number(await readFile(join(directory, 'guard'), 'utf8')), 'SIGKILL');

    await daemon.stop(request.signal);

    expect(await leftOnHost()).toEqual([]);
  });

  test('when main shell and guard are killed a sweep removes the rest, and before that nothing', async () => {
    const daemon = await startDaemon(runner, request);
    const directory = await privateDirectory();
    expect(await sweepHost(runner, request)).toEqual([]);
    const pid = (await listening())?.pid ?? 0;

    const guard = Number(await readFile(join(directory, 'guard'), 'utf8'));
    const main = Number(/\.(\d+)\./.exec(directory)?.[1]);
    process.kill(guard, 'SIGKILL');
    process.kill(main, 'SIGKILL');
    while ((await processes()).some((one) => [guard, main].includes(one.pid))) await delay(20);
    expect(() => process.kill(pid, 0)).not.toThrow();

    const swept = await localRunner({
      directory: join(scratch.path, 'other'),
      shell,
      env: { TMPDIR: remoteTemporary(scratch.path) },
    });
    expect(await sweepHost(swept, request)).toEqual([name]);
    await hostIsClean();
    await daemon.lost;
  });

  test('an rsync that ends by itself is a loss that is told', async () => {
    await using daemon = await startDaemon(runner, request);

    process.kill((await listening())?.pid ?? 0, 'SIGKILL');

    expect(await daemon.lost).toMatchObject({ code: 'RSYNCD_FAILED' });
  });

  test('a port that is taken makes it try the next one', async () => {
    const first = await twoPorts();
    await using _ = await occupy(first);
    vi.spyOn(Math, 'random').mockReturnValueOnce(0.1).mockReturnValueOnce(0.2);

    await using daemon = await startDaemon(runner, {
      ...request,
      ports: { first, last: first + 1 },
    });

    expect(daemon.port).toBe(first + 1);
  });

  test('a range without a free port is an error that names the range', async () => {
    const port = await twoPorts();
    await using _ = await occupy(port);

    const starting = startDaemon(runner, { ...request, ports: { first: port, last: port } });

    await expect(starting).rejects.toMatchObject({
      code: 'RSYNCD_FAILED',
      facts: { firstPort: port, lastPort: port },
    });
  });

  test('a start that is aborted leaves nothing', async () => {
    const controller = new AbortController();
    const starting = startDaemon(
      {
        ...runner,
        start: async (command, options) =>
          await runner.start(command, {
            ...options,
            onLine: (line) => {
              if (line.startsWith('pgcloned ready')) controller.abort(new Error('cancelled'));
              options.onLine(line);
            },
          }),
      },
      { ...request, signal: controller.signal },
    );

    await expect(starting).rejects.toThrow('cancelled');
    expect(await leftOnHost()).toEqual([]);
  });

  test('its directory is for its user alone, and no argument shows the password', async () => {
    await using daemon = await startDaemon(runner, request);

    const directory = await privateDirectory();
    const { mode, uid } = await stat(directory);
    expect([mode & 0o777, uid]).toEqual([0o700, partsUser.uid]);
    expect((await stat(join(directory, 'secrets'))).mode & 0o777).toBe(0o600);
    expect(await readFile(join(directory, 'secrets'), 'utf8')).toBe(
      `${daemon.user}:${daemon.password}\n`,
    );
    expect(Buffer.from(daemon.password, 'base64url').length * 8).toBeGreaterThanOrEqual(256);
    const shown = (await listProcesses()).filter(({ args }) => args.includes(daemon.password));
    expect(shown).toEqual([]);
  });
});

describe('behind a real sshd', () => {
  let sshd: SshServer;
  let runner: LocalRunner;

  beforeEach(async () => {
    sshd = await startSshd({ settings: [`SetEnv TMPDIR=${remoteTemporary(scratch.path)}`] });
    runner = await localRunner({ directory: scratch.path, sshd });
  });

  afterEach(async () => {
    await sshd[Symbol.asyncDispose]();
  });

  test('a stopped daemon has left nothing when stop settles', async () => {
    const daemon = await startDaemon(runner, request);
    await fetchVersion(daemon);

    await daemon.stop(request.signal);

    expect(await leftOnHost()).toEqual([]);
  });

  test('a client that is killed takes it along', async () => {
    const daemon = await startDaemon(runner, request);

    process.kill(runner.pid(), 'SIGKILL');

    expect(await daemon.lost).toMatchObject({ code: 'SOURCE_LOST' });
    await hostIsClean();
  });

  test('a connection that freezes loses it when the lease is over', async () => {
    const daemon = await startDaemon(runner, { ...request, leaseMs: 2_000 });
    const transferring = await startSlowTransfer(daemon);

    process.kill(runner.pid(), 'SIGSTOP');

    await once(transferring, 'exit');
    while ((await readdir(remoteTemporary(scratch.path))).length > 0) await delay(50);
    process.kill(runner.pid(), 'SIGCONT');
    expect(await daemon.lost).toMatchObject({ code: 'SOURCE_LOST' });
    await hostIsClean();
  });

  test('an sshd that dies with its connections takes it along', async () => {
    const daemon = await startDaemon(runner, request);

    await sshd.kill();

    expect(await daemon.lost).toMatchObject({ code: 'SOURCE_LOST' });
    await hostIsClean();
  });
});

describe('with what is unusual', () => {
  let runner: LocalRunner;

  beforeEach(async () => {
    runner = await localRunner({ directory: scratch.path });
  });

  test('a module path may hold what the configuration of rsync cannot express', async () => {
    const odd = join(scratch.path, "%HOME% a\tb'\\ ");
    await makeDirectory(odd);
    await writeFile(join(odd, 'PG_VERSION'), '15\n');

    await using daemon = await startDaemon(runner, {
      ...request,
      modules: [{ name: 'pgdata', path: odd }],
    });

    expect(await fetchVersion(daemon)).toMatchObject({ bytes: 3, again: [] });
  });

  test('another password is refused', async () => {
    await using daemon = await startDaemon(runner, request);

    const fetching = fetchVersion(daemon, { password: 'guessed' });

    await expect(fetching).rejects.toMatchObject({
      code: 'RSYNCD_FAILED',
      message: expect.stringContaining('auth failed'),
    });
  });

  test('a connection beyond the limit is refused as something that may be tried again', async () => {
    await using daemon = await startDaemon(runner, { ...request, connectionsMax: 1 });
    const slow = await startSlowTransfer(daemon);

    const fetching = fetchVersion(daemon);

    await expect(fetching).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      message: expect.stringContaining('max connections'),
    });
    slow.kill('SIGKILL');
    await once(slow, 'exit');
  });

  test('a client with another address is refused', async () => {
    await using daemon = await startDaemon(runner, request);

    const [refused] = await once(rsync(daemon, ['--address=127.0.0.2', 'PG_VERSION']), 'exit');
    const [served] = await once(rsync(daemon, ['PG_VERSION']), 'exit');

    expect([refused, served]).toEqual([5, 0]);
  });

  test('an address given is listened on, and our address towards it allowed', async () => {
    await using daemon = await startDaemon(runner, {
      ...request,
      connectAddress: '127.0.0.3',
      bindAddress: '127.0.0.3',
    });

    await fetchVersion(daemon);
    expect(daemon.address).toBe('127.0.0.3');
  });

  test('an address that the source host lacks is an error that names it', async () => {
    const starting = startDaemon(runner, { ...request, bindAddress: '192.0.2.1' });

    await expect(starting).rejects.toMatchObject({
      code: 'RSYNCD_FAILED',
      facts: { address: '192.0.2.1' },
      hint: expect.stringContaining('rsyncd.address'),
    });
  });

  test('a stranger who answers in place of the daemon is found out', async () => {
    const port = await twoPorts();
    await using _ = await occupy(port);

    const starting = startDaemon(runner, {
      ...request,
      bindAddress: '127.0.0.2',
      ports: { first: port, last: port },
    });

    await expect(starting).rejects.toMatchObject({ code: 'RSYNCD_FAILED' });
  });

  test('a daemon that cannot be reached is an error that says which ports to open', async () => {
    const starting = startDaemon(runner, { ...request, bindAddress: '127.0.0.2' });

    await expect(starting).rejects.toMatchObject({
      code: 'RSYNCD_FAILED',
      hint: expect.stringContaining('45000 to 45999'),
    });
  });

  test.each([
    { script: 'exit 127', code: 'TOOL_MISSING', text: 'rsync is not installed' },
    { script: 'echo "no daemon here" >&2; exit 1', code: 'RSYNCD_FAILED', text: 'did not start' },
  ])('an rsync that says `$script` is the error $code', async ({ script, code, text }) => {
    const program = join(runner.bin, 'rsync');
    await writeFile(program, `#!/bin/sh\n${script}\n`);
    await chmod(program, 0o755);

    await expect(startDaemon(runner, request)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(text),
    });
  });

  test('a temporary directory that cannot be written is an error that says so', async () => {
    const elsewhere = await localRunner({
      directory: join(scratch.path, 'other'),
      env: { TMPDIR: '/proc' },
    });

    await expect(startDaemon(elsewhere, request)).rejects.toMatchObject({
      code: 'REMOTE_COMMAND_FAILED',
      facts: { reason: expect.stringContaining('cannot make a directory below /proc') },
    });
  });

  test('under root it serves as the owner of the data, and no more', {
    skip: !runsAsRoot,
  }, async () => {
    const asRoot = await localRunner({ directory: scratch.path, asOurselves: true });
    await runAsPartsUser(['chmod', '0700', join(scratch.path, 'pgdata')]);
    const versionFile = join(scratch.path, 'pgdata/PG_VERSION');
    await chmod(versionFile, 0o600);
    await using daemon = await startDaemon(asRoot, request);

    await expect(fetchVersion(daemon)).rejects.toThrow('Permission denied');
    await chown(versionFile, partsUser.uid, partsUser.gid);
    expect(await fetchVersion(daemon)).toMatchObject({ bytes: 3 });
    const { mode, uid } = await stat(await privateDirectory());
    expect([mode & 0o777, uid]).toEqual([0o710, 0]);
  });

  test('a module may not have a name that means something to rsync', async () => {
    const modules = [{ name: 'global', path: '/' }];

    await expect(startDaemon(runner, { ...request, modules })).rejects.toThrow('name');
  });
});

const listening = async () =>
  (await processes()).find(({ args }) => args.startsWith('rsync --daemon'));

async function privateDirectory(): Promise<string> {
  const temporary = remoteTemporary(scratch.path);
  const [directory = ''] = await readdir(temporary);
  return join(temporary, directory);
}

type Endpoint = Pick<RsyncDaemon, 'address' | 'port' | 'user' | 'password'>;

async function startEngine(
  shell: string,
  leaseMs: number,
): Promise<{ readonly engine: ChildProcess; readonly daemon: Endpoint }> {
  const engine = spawn(process.execPath, [FIXTURE, scratch.path, shell, name, String(leaseMs)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(engine.stdout, 'data')) as [Buffer];
  return { engine, daemon: JSON.parse(line.toString()) as Endpoint };
}

/** A transfer that would take a minute and has begun. */
async function startSlowTransfer(daemon: Endpoint): Promise<ChildProcess> {
  await writeFile(join(scratch.path, 'pgdata/big'), Buffer.alloc(6_000_000));
  const log = join(await privateDirectory(), 'log');
  for (;;) {
    const client = rsync(daemon, ['--bwlimit=100', 'big']);
    while (client.exitCode === null) {
      if ((await readFile(log, 'utf8')).includes('on pgdata/')) return client;
      await delay(20);
    }
    // Refused: the connection that has proved the daemon may still count as one.
  }
}

async function hostIsCleanButFor({ pid }: ChildProcess): Promise<void> {
  const left = async () => (await processes()).filter((one) => one.pid !== pid);
  while ((await left()).length > 0) await delay(50);
  expect(await readdir(remoteTemporary(scratch.path))).toEqual([]);
}

/** The first of two neighbours that are free, in a range that nobody takes ports of by himself. */
async function twoPorts(): Promise<number> {
  for (;;) {
    const port = await freePort();
    try {
      await using _ = await occupy(port);
      await using __ = await occupy(port + 1);
      return port;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
    }
  }
}

/** Somebody who listens and hangs up. */
async function occupy(port: number): Promise<AsyncDisposable> {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.write('not rsync\n', () => socket.destroy());
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

/** A client without our transfer's options. */
function rsync(daemon: Endpoint, args: readonly string[]): ChildProcess {
  const options = args.slice(0, -1);
  const url = `rsync://${daemon.user}@127.0.0.1:${String(daemon.port)}/pgdata/${args.at(-1) ?? ''}`;
  return spawn('rsync', [...options, url, join(scratch.path, 'here/')], {
    env: { PATH: '/usr/bin:/bin', RSYNC_PASSWORD: daemon.password },
    stdio: 'ignore',
  });
}
