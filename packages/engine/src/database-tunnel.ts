/**
 * The way to the database through the SSH connection (`ssh.tunnelDatabase`), for sources whose port is closed to us.
 *
 * Its near end is a unix socket in a directory of mode 0700: a TCP port would be open to everybody on this host. It lies
 * beside the lock of the target and belongs to whoever holds that lock, so what a killed process has left is known by its
 * name to the next clone and to the sweep; and its path stays short, as that of a socket must. A preflight alone holds no
 * lock, and has it in a directory that the next preflight removes.
 *
 * As with `ssh -L`, `host` and `port` of the source are as seen from `ssh.host`; without one `host` names the SSH server,
 * and the database is on its own loopback. TLS ends where the tunnel begins, since libpq has none on unix sockets: what the
 * SSH server passes on goes in clear, so it may have to go no further than its own host if the user asked for TLS.
 *
 * Lost with the SSH connection; what connects afterwards makes it open a new one.
 */
import { once } from 'node:events';
import { lstat, mkdtemp, readdir, rmdir, unlink } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { basename, dirname, join } from 'node:path';
import type { Duplex } from 'node:stream';
import { CloneError, type ServerAddress, type SourceConfiguration } from '@pgcloned/contract';
import type { ConnectionSettings } from '@pgcloned/postgres';
import type { ForwardTarget } from '@pgcloned/ssh';
import type { SourceHost, SourceRun } from './source-host.ts';
import { pathBesideLock } from './target/locks.ts';
import { makeTemporaryDirectory, type TemporaryDirectory } from './temporary-directory.ts';

const SOCKET_PREFIX = '.s.PGSQL.';

/**
 * @param dataDirectory The target, which must be locked; null: it is not.
 * @returns `address`, led through the tunnel.
 * @throws {CloneError} `SOURCE_UNREACHABLE` if the SSH server does not connect us, `CONFIGURATION_INVALID` if `sslmode` asks
 *   for what holds in no tunnel.
 */
export async function openDatabaseTunnel(
  run: SourceRun,
  {
    host,
    address,
    dataDirectory,
  }: {
    readonly host: SourceHost;
    readonly address: ConnectionSettings;
    readonly dataDirectory: string | null;
  },
): Promise<ConnectionSettings> {
  const { source } = run.plan;
  const target = targetOf(source, address);
  refuseWeakerThanAsked(source, target);
  // Told here what is wrong with it: those that connect later only see that their socket is closed.
  (await host.ssh().forward(target, run.signal)).on('error', () => {}).destroy();

  const made =
    dataDirectory === null ? await makeTemporaryDirectory() : await makeDirectory(dataDirectory);
  const directory = made.path;
  const closing = new AbortController();
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    void carry(socket, async () => {
      await host.reopen(closing.signal);
      return await host.ssh().forward(target, closing.signal);
    });
  });
  // Whoever could not be let in sees that it is not.
  server.on('error', () => {});
  run.cleanup.always({
    what: `directory ${directory}`,
    remedy: `rm -r ${directory}`,
    undo: async () => {
      closing.abort(new Error('the tunnel is closed'));
      for (const socket of sockets) socket.destroy();
      await close(server);
      await made[Symbol.asyncDispose]();
    },
  });
  server.listen(join(directory, `${SOCKET_PREFIX}${String(address.port)}`));
  await once(server, 'listening');
  return { ...address, host: hostOfDatabase(source, address), tunnelDirectory: directory };
}

/** What a killed process has left. Whoever calls holds the lock on the data directory, and has no tunnel open. */
export async function removeDeadTunnels(dataDirectory: string): Promise<void> {
  const prefix = await prefixOf(dataDirectory);
  for (const name of await readdir(dirname(prefix))) {
    if (!name.startsWith(basename(prefix))) continue;
    const directory = join(dirname(prefix), name);
    const { uid } = await lstat(directory);
    if (uid === process.getuid?.()) await removeDirectory(directory);
  }
}

/** The name by which others than its SSH server reach the database, the replica for instance. */
function hostOfDatabase({ ssh }: SourceConfiguration, { host }: ServerAddress): string {
  return isLoopback(host) ? (ssh.host ?? host) : host;
}

/** A directory for each tunnel: their sockets may have one name, and some are opened while others are closed. */
const prefixOf = async (dataDirectory: string) =>
  `${await pathBesideLock(dataDirectory, 'tunnel')}-`;

function targetOf({ ssh }: SourceConfiguration, { host, port }: ServerAddress): ForwardTarget {
  return { host: ssh.host === null ? 'localhost' : host, port };
}

const isLoopback = (host: string) => /^(?:localhost|127\.[\d.]+|::1)$/i.test(host);

function refuseWeakerThanAsked(source: SourceConfiguration, target: ForwardTarget): void {
  const { sslmode, ssh } = source;
  const isVerified = sslmode.startsWith('verify-');
  if (isVerified && ssh.insecure) {
    throw new CloneError(
      'CONFIGURATION_INVALID',
      `sslmode ${sslmode} needs an SSH host key that is checked`,
      {
        facts: { sslmode, insecure: true },
        hint: 'Inside the tunnel the host key proves who answers: set ssh.insecure: false and name a ssh.knownHostsFile.',
      },
    );
  }
  if (isLoopback(target.host) || !(isVerified || sslmode === 'require')) return;
  throw new CloneError(
    'CONFIGURATION_INVALID',
    `sslmode ${sslmode} cannot hold between ${ssh.host ?? ''} and ${target.host}`,
    {
      facts: { sslmode, sshServer: ssh.host, host: target.host },
      hint: 'The tunnel ends at the SSH server, and from there it goes on in clear. Let the SSH server be the host of the database, or choose sslmode prefer if the network between the two can be trusted.',
    },
  );
}

async function makeDirectory(dataDirectory: string): Promise<TemporaryDirectory> {
  const prefix = await prefixOf(dataDirectory);
  try {
    const path = await mkdtemp(prefix);
    return {
      path,
      [Symbol.asyncDispose]: async () => {
        await removeDirectory(path);
      },
    };
  } catch (cause) {
    const path = dirname(prefix);
    throw new CloneError('TARGET_NOT_WRITABLE', `cannot make a directory in ${path}`, {
      facts: { path, reason: String(cause) },
      hint: 'The socket of the tunnel is to lie there: see whether its filesystem is full.',
      cause,
    });
  }
}

async function removeDirectory(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    if (name.startsWith(SOCKET_PREFIX)) await unlink(join(directory, name));
  }
  await rmdir(directory);
}

/** Never rejects. Settles once the socket is closed, and its other end told so. */
async function carry(socket: Socket, open: () => Promise<Duplex>): Promise<void> {
  // Whoever uses the two sees their end, and that is all that can be told.
  socket.on('error', () => {});
  const socketClosed = once(socket, 'close').catch(() => {});
  let channel: Duplex;
  try {
    channel = await open();
  } catch {
    // Whoever has connected sees its end, as above.
    socket.destroy();
    await socketClosed;
    return;
  }
  channel.on('error', () => {});
  // What has come is still to be handed over.
  channel.once('close', () => {
    socket.destroySoon();
  });
  socket.pipe(channel).pipe(socket);
  await socketClosed;
  // Over a dead link nobody confirms that; then the SSH connection ends, and all its channels with it.
  channel.destroy();
}

async function close(server: Server): Promise<void> {
  if (!server.listening) return;
  server.close();
  await once(server, 'close');
}
