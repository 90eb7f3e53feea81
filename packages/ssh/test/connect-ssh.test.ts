/** Connections to a real sshd: who is let in, which host is believed, and what an error tells. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import { partsUser, runAsPartsUser, type SshServer, startSshd } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { connectSsh, type SshTarget } from '../src/index.ts';

const { signal } = new AbortController();

let sshd: SshServer;

beforeAll(async () => {
  sshd = await startSshd();
});

afterAll(async () => {
  await sshd[Symbol.asyncDispose]();
});

function targetOf(server: SshServer, changes: Partial<SshTarget> = {}): SshTarget {
  return { ...server.target, ...changes };
}

async function failureOf(target: SshTarget, timeoutMs?: number): Promise<CloneError> {
  try {
    await using _ = await connectSsh(target, {
      signal,
      ...(timeoutMs !== undefined && { timeoutMs }),
    });
  } catch (error) {
    if (error instanceof CloneError) return error;
    throw error;
  }
  throw new Error('the connection was made');
}

async function whoami(target: SshTarget): Promise<string> {
  await using connection = await connectSsh(target, { signal });
  const { stdout } = await connection.run('id -un', { signal });
  return stdout.toString().trim();
}

/** An agent that holds the key which the server lets in. */
async function startAgent(): Promise<AsyncDisposable & { readonly socket: string }> {
  const socket = join(sshd.directory, 'agent.sock');
  const agent = spawn('setpriv', ['--pdeathsig', 'TERM', 'ssh-agent', '-D', '-a', socket], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  await once(agent.stdout, 'data');
  await runProcess(
    { file: 'ssh-add', args: [sshd.privateKeyFile], env: { SSH_AUTH_SOCK: socket } },
    { signal },
  );
  return {
    socket,
    [Symbol.asyncDispose]: async () => {
      agent.kill();
      await once(agent, 'exit');
    },
  };
}

test('a known host and an authorised key make a connection that knows both addresses', async () => {
  await using connection = await connectSsh(targetOf(sshd), { signal });

  expect(connection.label).toBe(`${partsUser.name}@127.0.0.1:${String(sshd.port)}`);
  expect(connection.remoteAddress).toBe('127.0.0.1');
  expect(connection.localAddress).toBe('127.0.0.1');
});

test('a connection that was disposed is gone, and closed without a reason', async () => {
  const connection = await connectSsh(targetOf(sshd), { signal });

  await connection[Symbol.asyncDispose]();

  expect(await connection.closed).toBeNull();
  await expect(connection.run('true', { signal })).rejects.toMatchObject({ code: 'SOURCE_LOST' });
});

test('a key that is not authorised is refused, and the hint names it', async () => {
  const error = await failureOf(targetOf(sshd, { privateKeyFile: sshd.otherKeyFile }));

  expect(error.code).toBe('SSH_AUTHENTICATION_FAILED');
  expect(error.message).toBe(`127.0.0.1 does not let ${partsUser.name} in over SSH`);
  expect(error.hint).toContain(sshd.otherKeyFile);
  expect(error.facts.keysTried).toBe(sshd.otherKeyFile);
});

test('too many keys are a refusal too', async () => {
  const error = await failureOf(
    targetOf(sshd, { defaultKeyFiles: Array(10).fill(sshd.otherKeyFile), privateKeyFile: null }),
  );

  expect(error.code).toBe('SSH_AUTHENTICATION_FAILED');
});

test('a default key is used when none was named, and useless ones are passed over', async () => {
  const missing = join(sshd.directory, 'missing');
  const locked = join(sshd.directory, 'locked');
  await copyFile(sshd.privateKeyFile, locked);
  await runProcess(
    { file: 'ssh-keygen', args: ['-q', '-p', '-P', '', '-N', 'secret', '-f', locked], env: {} },
    { signal },
  );
  const defaultKeyFiles = [missing, locked, sshd.otherKeyFile, sshd.privateKeyFile];

  expect(await whoami(targetOf(sshd, { privateKeyFile: null, defaultKeyFiles }))).toBe(
    partsUser.name,
  );
  expect(await failureOf(targetOf(sshd, { privateKeyFile: locked }))).toMatchObject({
    code: 'SSH_AUTHENTICATION_FAILED',
    message: 'the SSH key cannot be used: it has a passphrase',
  });
  expect(await failureOf(targetOf(sshd, { privateKeyFile: missing }))).toMatchObject({
    code: 'SSH_AUTHENTICATION_FAILED',
    message: 'the SSH key cannot be used: there is no such file',
  });
  expect(
    await failureOf(targetOf(sshd, { privateKeyFile: null, defaultKeyFiles: [missing] })),
  ).toMatchObject({
    code: 'SSH_AUTHENTICATION_FAILED',
    message: 'there is no SSH key to use',
  });
});

test('an agent lets us in, and an agent that is away leaves the other keys', async () => {
  await using agent = await startAgent();
  const away = join(sshd.directory, 'no-agent.sock');

  expect(await whoami(targetOf(sshd, { privateKeyFile: null, agentSocket: agent.socket }))).toBe(
    partsUser.name,
  );
  expect(
    await whoami(
      targetOf(sshd, {
        privateKeyFile: null,
        agentSocket: away,
        defaultKeyFiles: [sshd.privateKeyFile],
      }),
    ),
  ).toBe(partsUser.name);
});

test('an unknown host is refused, and the command of the hint makes it known', async () => {
  const file = join(sshd.directory, 'empty known hosts');
  const target = targetOf(sshd, { knownHostsFiles: [file] });

  const error = await failureOf(target);
  const command = /`([^`]+)`/.exec(error.hint ?? '')?.[1] ?? '';
  await runProcess({ file: 'sh', args: ['-c', command], env: {} }, { signal });
  const { stdout } = await runProcess(
    { file: 'ssh-keygen', args: ['-lf', join(sshd.directory, 'host_key.pub')], env: {} },
    { signal },
  );

  expect(error.code).toBe('SSH_HOST_KEY_UNKNOWN');
  expect(error.facts.keyType).toBe('ssh-ed25519');
  expect(stdout.toString()).toContain(String(error.facts.fingerprint));
  expect(await whoami(target)).toBe(partsUser.name);
});

test('a changed host key is refused, and the commands of the hint replace it', async () => {
  const file = join(sshd.directory, 'changed');
  await copyFile(sshd.wrongKnownHostsFile, file);
  const target = targetOf(sshd, { knownHostsFiles: [file] });

  const error = await failureOf(target);
  for (const [, command = ''] of (error.hint ?? '').matchAll(
    /`(ssh-keygen -R[^`]+|ssh-keyscan[^`]+)`/g,
  )) {
    await runProcess({ file: 'sh', args: ['-c', command], env: {} }, { signal });
  }

  expect(error.code).toBe('SSH_HOST_KEY_MISMATCH');
  expect(await whoami(target)).toBe(partsUser.name);
});

test('insecure takes any host key', async () => {
  const target = targetOf(sshd, { knownHostsFiles: [sshd.wrongKnownHostsFile], insecure: true });

  expect(await whoami(target)).toBe(partsUser.name);
});

test('a hashed entry in the second of several files is found', async () => {
  const hashed = join(sshd.directory, 'hashed');
  await copyFile(sshd.knownHostsFile, hashed);
  await runProcess({ file: 'ssh-keygen', args: ['-H', '-f', hashed], env: {} }, { signal });
  const knownHostsFiles = [join(sshd.directory, 'missing'), hashed];

  expect(await readFile(hashed, 'utf8')).toMatch(/^\|1\|/);
  expect(await whoami(targetOf(sshd, { knownHostsFiles }))).toBe(partsUser.name);
});

test('a key known for the host without its port is believed, and a revoked one is not', async () => {
  const file = join(sshd.directory, 'portless');
  const key = (await readFile(sshd.knownHostsFile, 'utf8')).replace(/^\S+ /, '');
  const target = targetOf(sshd, { knownHostsFiles: [file] });

  await writeFile(file, `127.0.0.1 ${key}`);
  expect(await whoami(target)).toBe(partsUser.name);
  await writeFile(file, `127.0.0.1 ${key}@revoked * ${key}`);
  expect(await failureOf(target)).toMatchObject({
    code: 'SSH_HOST_KEY_MISMATCH',
    message: 'the host key of 127.0.0.1 is revoked',
  });
});

test('a server with several host keys is asked for the one that is known', async () => {
  await using server = await startSshd();
  const rsa = join(server.directory, 'rsa');
  await runAsPartsUser(['ssh-keygen', '-q', '-t', 'rsa', '-b', '2048', '-N', '', '-f', rsa]);
  await server.kill();
  const config = join(server.directory, 'sshd_config');
  await writeFile(config, `${await readFile(config, 'utf8')}HostKey ${rsa}\n`);
  await server.start();
  const known = join(server.directory, 'rsa_known');
  await writeFile(
    known,
    `[127.0.0.1]:${String(server.port)} ${await readFile(`${rsa}.pub`, 'utf8')}`,
  );

  expect(await whoami(targetOf(server, { knownHostsFiles: [known] }))).toBe(partsUser.name);
});

test('a port where nobody listens is unreachable', async () => {
  const error = await failureOf(targetOf(sshd, { port: 1, insecure: true }));

  expect(error.code).toBe('SSH_UNREACHABLE');
  expect(error.message).toBe('cannot connect to 127.0.0.1 port 1');
  expect(error.facts.reason).toContain('ECONNREFUSED');
});

test('a name that does not exist is unreachable', async () => {
  expect(
    await failureOf(targetOf(sshd, { host: 'nowhere.invalid', insecure: true })),
  ).toMatchObject({ code: 'SSH_UNREACHABLE' });
});

test('a server that accepts and then says nothing is given up after the timeout', async () => {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };

  const error = await failureOf(targetOf(sshd, { port }), 100);
  server.close();

  expect(error).toMatchObject({ code: 'SSH_UNREACHABLE' });
  expect(error.facts.reason).toBe('no answer within 0.1 s');
});

test('an address that answers nothing is given up after the timeout', async () => {
  // TEST-NET-1: nobody may have this address.
  const error = await failureOf(targetOf(sshd, { host: '192.0.2.1' }), 100);

  expect(error.code).toBe('SSH_UNREACHABLE');
});

test('an abort while connecting ends in its reason, and the connection is gone', async () => {
  const controller = new AbortController();
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const connecting = connectSsh(targetOf(sshd, { port }), { signal: controller.signal });
  const [socket] = (await once(server, 'connection')) as [Socket];
  const ended = once(socket.resume(), 'close');

  controller.abort(new Error('user cancelled'));

  await expect(connecting).rejects.toThrow('user cancelled');
  await ended;
  server.close();
});
