/** TCP connections through a real sshd. */
import { once } from 'node:events';
import { createServer, type Server } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { freePort, type SshServer, startSshd } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { connectSsh, type SshConnection } from '../src/index.ts';

const { signal } = new AbortController();

async function connectTo(sshd: SshServer): Promise<SshConnection> {
  return await connectSsh(sshd.target, { signal });
}

/** Sends back what it gets, and closes its half after the other has closed. */
async function startEcho(): Promise<AsyncDisposable & { readonly port: number }> {
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => {});
    socket.pipe(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as { port: number }).port,
    [Symbol.asyncDispose]: async () => {
      server.close();
      await once(server, 'close');
    },
  };
}

test('bytes go both ways unchanged, and each half closes by itself', async () => {
  await using sshd = await startSshd();
  await using echo = await startEcho();
  await using connection = await connectTo(sshd);
  // More than the window of a channel.
  const sent = Buffer.alloc(5_000_000, 'pgcloned');

  const stream = await connection.forward({ host: 'localhost', port: echo.port }, signal);
  stream.end(sent);
  const received = await buffer(stream);

  expect(received.equals(sent)).toBe(true);
});

test('the loss of the SSH connection ends the stream', async () => {
  await using sshd = await startSshd();
  await using echo = await startEcho();
  await using connection = await connectTo(sshd);
  const stream = await connection.forward({ host: '127.0.0.1', port: echo.port }, signal);
  stream.on('error', () => {}).resume();
  const closed = once(stream, 'close');

  await sshd.kill();
  await closed;

  await expect(
    connection.forward({ host: '127.0.0.1', port: echo.port }, signal),
  ).rejects.toMatchObject({ code: 'SOURCE_LOST' });
});

test('what sshd cannot reach, or forbids, is an error that says which', async () => {
  await using sshd = await startSshd();
  await using strict = await startSshd({ settings: ['AllowTcpForwarding no'] });
  const target = { host: '127.0.0.1', port: await freePort() };
  const failureOf = async (server: SshServer) => {
    await using connection = await connectTo(server);
    return await connection.forward(target, signal).catch((error: unknown) => error);
  };

  expect(await failureOf(sshd)).toMatchObject({
    code: 'SOURCE_UNREACHABLE',
    message: expect.stringContaining('gets no connection'),
    hint: expect.stringContaining('listen_addresses'),
  });
  expect(await failureOf(strict)).toMatchObject({
    code: 'SOURCE_UNREACHABLE',
    message: expect.stringContaining('forbids'),
    hint: expect.stringContaining('AllowTcpForwarding'),
  });
});
