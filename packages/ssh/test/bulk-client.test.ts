/** Connections of the real OpenSSH client to a real sshd: what they accept, what uses them, and what an error tells. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { connect as connectSocket } from 'node:net';
import { join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import {
  descendantsOf,
  listProcesses,
  makeDirectory,
  partsUser,
  type ScratchDirectory,
  type SshServer,
  scratchDirectory,
  startSshd,
} from '@pgcloned/testbed';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { type BulkConnection, connectSsh, openBulkClient, type SshTerms } from '../src/index.ts';

const { signal } = new AbortController();

let sshd: SshServer;
let terms: SshTerms;
let scratch: ScratchDirectory;
/** Longer than the path of a socket may be, and such as none of ssh's options takes. */
let parent: string;

beforeAll(async () => {
  sshd = await startSshd();
  terms = await termsOf(sshd);
});

afterAll(async () => {
  await sshd[Symbol.asyncDispose]();
});

beforeEach(async () => {
  scratch = await scratchDirectory();
  parent = join(scratch.path, `it's 100%h "$HOME" ~ ${'long'.repeat(30)}`);
  await makeDirectory(parent);
});

afterEach(async () => {
  const left = [...(await readdir(parent)), ...(await masters()).map(({ args }) => args)];
  await scratch[Symbol.asyncDispose]();
  expect(left).toEqual([]);
});

async function masters() {
  return (await listProcesses()).filter(
    ({ args }) => args.startsWith('ssh -F none -N') && args.includes(` -p ${String(sshd.port)} `),
  );
}

async function termsOf(server: SshServer, agentSocket: string | null = null): Promise<SshTerms> {
  await using connection = await connectSsh(
    agentSocket === null ? server.target : { ...server.target, privateKeyFile: null, agentSocket },
    { signal },
  );
  return connection.terms;
}

const open = async (changes: Partial<SshTerms> = {}) =>
  await openBulkClient({ ...terms, ...changes }, { parent, silenceMs: 20_000 });

/** What a command says that runs over the connection, or how its ssh ended. */
async function run({ remoteShell, directory }: BulkConnection, command: string): Promise<string> {
  const [file = '', ...args] = remoteShell.split(' ');
  const { status, stdout } = await runProcess(
    { file, args: [...args, 'anything', command], cwd: directory, env: {} },
    { signal, accept: 'any' },
  );
  return status === 0 ? stdout.toString() : `status ${String(status)}`;
}

async function connectionFailure(changes: Partial<SshTerms>): Promise<unknown> {
  await using client = await open(changes);
  try {
    await using _ = await client.connect({ through: terms, signal });
    return 'the connection was made';
  } catch (error) {
    return error;
  }
}

test('commands share a connection, one after the other and side by side', async () => {
  await using client = await open();
  await using connection = await client.connect({ through: terms, signal });

  const peer = await run(connection, 'id -un; echo $SSH_CONNECTION');
  const others = await Promise.all(
    ['1', '2', '3'].map(async (one) => await run(connection, `echo ${one} $SSH_CONNECTION`)),
  );

  const [user, via] = peer.trim().split('\n');
  expect(user).toBe(partsUser.name);
  expect(others).toEqual(['1', '2', '3'].map((one) => `${one} ${via ?? ''}\n`));
});

test('what has lost its connection does not make another one', async () => {
  await using client = await open();
  await using connection = await client.connect({ through: terms, signal });
  expect(connection.hasEnded()).toBe(false);

  const [master] = await masters();
  process.kill(master?.pid ?? 0, 'SIGKILL');
  const ended = await run(connection, 'true');

  expect(ended).toBe('status 255');
  await expect.poll(() => connection.hasEnded()).toBe(true);
});

test('a host that has another key than before is refused, whoever knows that key', async () => {
  const [, base64 = ''] = (
    await readFile(join(sshd.directory, 'wrong_host_key.pub'), 'utf8')
  ).split(' ');

  const failure = await connectionFailure({ hostKey: Buffer.from(base64, 'base64') });

  expect(failure).toMatchObject({ code: 'SSH_HOST_KEY_MISMATCH' });
});

test('a key that others may read is good for us and not for OpenSSH, which is told with its name', async () => {
  const privateKeyFile = join(scratch.path, 'readable key');
  // OpenSSH only minds a key of the user that runs it.
  await writeFile(privateKeyFile, await readFile(sshd.privateKeyFile), { mode: 0o644 });

  const failure = await connectionFailure({ privateKeyFile });

  expect(failure).toMatchObject({
    code: 'SSH_AUTHENTICATION_FAILED',
    message: 'OpenSSH cannot use the SSH key',
    facts: { privateKeyFile, reason: expect.stringContaining(privateKeyFile) },
    hint: expect.stringContaining('chmod 600'),
  });
});

test('a key that the host no longer lets in is refused', async () => {
  expect(await connectionFailure({ privateKeyFile: sshd.otherKeyFile })).toMatchObject({
    code: 'SSH_AUTHENTICATION_FAILED',
    facts: { reason: expect.stringContaining('Permission denied') },
  });
});

test('a key that only an agent has is used from there', async () => {
  const socket = join(sshd.directory, 'agent.sock');
  const agent = spawn('setpriv', ['--pdeathsig', 'TERM', 'ssh-agent', '-D', '-a', socket], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  try {
    await once(agent.stdout, 'data');
    const env = { SSH_AUTH_SOCK: socket };
    await runProcess({ file: 'ssh-add', args: [sshd.privateKeyFile], env }, { signal });
    const ofAgent = await termsOf(sshd, socket);
    expect(ofAgent).toMatchObject({ privateKeyFile: null, agentSocket: socket });

    await using client = await open(ofAgent);
    await using connection = await client.connect({ through: terms, signal });

    expect(await run(connection, 'echo in')).toBe('in\n');
  } finally {
    agent.kill();
    await once(agent, 'exit');
  }
});

test('an sshd that lets nobody else in for now is not reachable, and the hint says what decides it', async () => {
  await using busy = await startSshd({ settings: ['MaxStartups 1:100:1'] });
  // Whoever has just looked whether it is there counts until sshd has noticed that he is gone.
  const isAlone = async () =>
    await expect.poll(async () => descendantsOf(busy.pid, await listProcesses())).toEqual([]);
  await isAlone();
  const { address, port, ...others } = await termsOf(busy);
  await isAlone();
  await using client = await open(others);
  // They do not say who they are.
  const guests = [1, 2, 3].map(() => connectSocket(port, address));
  try {
    await Promise.all(
      guests.map(async (guest) => await Promise.race([once(guest, 'data'), once(guest, 'close')])),
    );

    await expect(client.connect({ through: { address, port }, signal })).rejects.toMatchObject({
      code: 'SSH_UNREACHABLE',
      hint: expect.stringContaining('MaxStartups'),
    });
  } finally {
    for (const guest of guests) guest.destroy();
  }
});

test('of many connections at once only a few knock at a time, so all are let in', async () => {
  await using strict = await startSshd({ settings: ['MaxStartups 6:100:6'] });
  const { address, port, ...others } = await termsOf(strict);
  await using client = await open(others);
  await using connections = new AsyncDisposableStack();

  const shells = await Promise.all(
    Array.from({ length: 12 }, async () =>
      connections.use(await client.connect({ through: { address, port }, signal })),
    ),
  );

  expect(new Set(shells.map(({ remoteShell }) => remoteShell)).size).toBe(12);
});

test('an aborted attempt has ended when it rejects', async () => {
  await using client = await open();
  const controller = new AbortController();

  const connecting = client.connect({ through: terms, signal: controller.signal });
  controller.abort(new Error('cancelled'));

  await expect(connecting).rejects.toThrow('cancelled');
  expect(await masters()).toEqual([]);
});

test('a host without the OpenSSH client is told what to install', async () => {
  await using client = await open();
  vi.stubEnv('PATH', '/nonexistent');
  try {
    await expect(client.connect({ through: terms, signal })).rejects.toMatchObject({
      code: 'TOOL_MISSING',
      facts: { program: 'ssh' },
      hint: expect.stringContaining('openssh-client'),
    });
  } finally {
    vi.unstubAllEnvs();
  }
});
