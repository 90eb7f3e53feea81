/**
 * A real sshd on a port of its own, which lets one key in.
 *
 * It runs as the parts' user and not as root: a root sshd without PAM refuses `postgres`, whose account has no password
 * ("account is locked").
 */
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { codeOf } from '@pgcloned/process';
import { freePort } from './free-port.ts';
import { partsUser, runAsPartsUser } from './parts-user.ts';
import { descendantsOf, listProcesses } from './process-list.ts';
import { scratchDirectory } from './scratch-directory.ts';
import { type ServerProcess, startServerProcess } from './server-process.ts';

const START_ATTEMPTS_MAX = 5;

export interface SshServer extends AsyncDisposable {
  readonly host: '127.0.0.1';
  readonly port: number;
  readonly user: string;
  /** The key that it lets in. */
  readonly privateKeyFile: string;
  /** How an SSH client gets in: by that key, to the host key that `knownHostsFile` knows, and by nothing else. */
  readonly target: {
    readonly host: string;
    readonly port: number;
    readonly user: string;
    readonly privateKeyFile: string;
    readonly defaultKeyFiles: readonly string[];
    readonly agentSocket: null;
    readonly knownHostsFiles: readonly string[];
    readonly insecure: false;
  };
  /** A key that it does not let in. */
  readonly otherKeyFile: string;
  /** Knows the server as `[127.0.0.1]:port`, and by its other addresses. */
  readonly knownHostsFile: string;
  /** Knows another server's key under the same name. */
  readonly wrongKnownHostsFile: string;
  /** A directory that ends with the server, for the files of one test. */
  readonly directory: string;
  readonly logFile: string;
  readonly pid: number;
  /**
   * Ends the listener and every connection at once, by SIGKILL unless told otherwise. Remote commands live on, as they do
   * when a network breaks.
   */
  kill(signal?: 'SIGTERM' | 'SIGKILL'): Promise<void>;
  /** Starts it again on the same port after `kill`. */
  start(): Promise<void>;
}

export interface SshdOptions {
  /** Lines of sshd_config; the first of a keyword wins, and these come first. */
  readonly settings?: readonly string[];
  /** Addresses beside 127.0.0.1. */
  readonly alsoListen?: readonly string[];
}

export async function startSshd(options: SshdOptions = {}): Promise<SshServer> {
  const scratch = await scratchDirectory();
  try {
    for (const name of ['host_key', 'wrong_host_key', 'client_key', 'other_client_key']) {
      const keyFile = join(scratch.path, name);
      await runAsPartsUser(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', keyFile]);
    }
    await copyFile(join(scratch.path, 'client_key.pub'), join(scratch.path, 'authorized_keys'));
    for (let attempt = 1; ; attempt += 1) {
      const server = await sshServer(scratch.path, await freePort(), options);
      try {
        await server.start();
        return {
          ...server,
          get pid() {
            return server.pid;
          },
          [Symbol.asyncDispose]: async () => {
            await server.kill();
            await scratch[Symbol.asyncDispose]();
          },
        };
      } catch (error) {
        const taken = /Address already in use|Cannot bind/.test(String(error));
        if (!taken || attempt === START_ATTEMPTS_MAX) throw error;
      }
    }
  } catch (error) {
    await scratch[Symbol.asyncDispose]();
    throw error;
  }
}

async function sshServer(
  directory: string,
  port: number,
  options: SshdOptions,
): Promise<Omit<SshServer, typeof Symbol.asyncDispose>> {
  const at = (name: string) => join(directory, name);
  const addresses = ['127.0.0.1', ...(options.alsoListen ?? [])];
  await writeFile(
    at('sshd_config'),
    [
      // Several clones at a time open more connections than the default lets in. Of this keyword the last one wins.
      'MaxStartups 100',
      ...(options.settings ?? []),
      `Port ${String(port)}`,
      ...addresses.map((address) => `ListenAddress ${address}`),
      `HostKey ${at('host_key')}`,
      `AuthorizedKeysFile ${at('authorized_keys')}`,
      'AuthenticationMethods publickey',
      'UsePAM no',
      'PidFile none',
      'PrintMotd no',
      // The directory of the keys lies below /tmp, which everyone may write to.
      'StrictModes no',
      '',
    ].join('\n'),
  );
  const name = addresses.map((address) => `[${address}]:${String(port)}`).join(',');
  await writeFile(at('known_hosts'), `${name} ${await readFile(at('host_key.pub'), 'utf8')}`);
  await writeFile(
    at('wrong_known_hosts'),
    `${name} ${await readFile(at('wrong_host_key.pub'), 'utf8')}`,
  );
  let server: ServerProcess | null = null;
  return {
    host: '127.0.0.1',
    port,
    user: partsUser.name,
    privateKeyFile: at('client_key'),
    target: {
      ...{ host: '127.0.0.1', port, user: partsUser.name, privateKeyFile: at('client_key') },
      ...{ defaultKeyFiles: [], agentSocket: null },
      ...{ knownHostsFiles: [at('known_hosts')], insecure: false },
    },
    otherKeyFile: at('other_client_key'),
    knownHostsFile: at('known_hosts'),
    wrongKnownHostsFile: at('wrong_known_hosts'),
    directory,
    logFile: at('log'),
    get pid() {
      return server?.pid ?? 0;
    },
    start: async () => {
      server = await startServerProcess({
        argv: ['/usr/sbin/sshd', '-D', '-e', '-f', at('sshd_config')],
        logFile: at('log'),
        deathSignal: 'TERM',
        isReady: () => greets(port),
      });
    },
    kill: async (signal = 'SIGKILL') => {
      if (server === null) return;
      const connections = descendantsOf(server.pid, await listProcesses()).filter(({ args }) =>
        args.startsWith('sshd'),
      );
      await server.stop(signal);
      for (const { pid } of connections) {
        try {
          process.kill(pid, signal);
        } catch (error) {
          if (codeOf(error) !== 'ESRCH') throw error;
        }
      }
      server = null;
    },
  };
}

/** Whether an SSH server answers there. */
async function greets(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const connection = createConnection(port, '127.0.0.1');
  connection.once('error', () => {
    resolve(false);
  });
  connection.once('data', (data: Buffer) => {
    resolve(data.toString().startsWith('SSH-'));
  });
  try {
    return await promise;
  } finally {
    connection.destroy();
  }
}
