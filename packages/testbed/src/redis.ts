/** A real redis-server on a unix socket with an append-only file, as the product runs its own. */
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { runAsPartsUser } from './parts-user.ts';
import { scratchDirectory } from './scratch-directory.ts';
import { type ServerProcess, startServerProcess } from './server-process.ts';

export interface PrivateRedis extends AsyncDisposable {
  /** `unix:///path` */
  readonly url: string;
  readonly socket: string;
  /** Holds all that was ever written to it, in `appendonlydir`. */
  readonly directory: string;
  readonly pid: number;
  /** Its data stays on disk for the next start. Default: SIGTERM. */
  stop(signal?: 'SIGTERM' | 'SIGKILL'): Promise<void>;
  start(): Promise<void>;
  /** Forgets everything, as a Redis without persistence does at a restart. */
  flush(): Promise<void>;
}

export async function startRedis(): Promise<PrivateRedis> {
  const scratch = await scratchDirectory();
  const socket = join(scratch.path, 'redis.sock');
  let server: ServerProcess | null = null;
  const redis: PrivateRedis = {
    url: `unix://${socket}`,
    socket,
    directory: scratch.path,
    get pid() {
      return server?.pid ?? 0;
    },
    start: async () => {
      server = await startServerProcess({
        argv: [
          ...['redis-server', '--dir', scratch.path],
          ...['--port', '0', '--unixsocket', socket, '--unixsocketperm', '700'],
          ...['--appendonly', 'yes', '--save', '', '--maxmemory-policy', 'noeviction'],
          // So that a test can look for secrets in its files.
          ...['--rdbcompression', 'no'],
        ],
        logFile: join(scratch.path, 'log'),
        deathSignal: 'TERM',
        isReady: () => answersPing(socket),
      });
    },
    stop: async (signal = 'SIGTERM') => {
      await server?.stop(signal);
      server = null;
    },
    flush: async () => {
      await runAsPartsUser(['redis-cli', '-s', socket, 'FLUSHALL']);
    },
    [Symbol.asyncDispose]: async () => {
      await server?.stop('SIGKILL');
      await scratch[Symbol.asyncDispose]();
    },
  };
  try {
    await redis.start();
    return redis;
  } catch (error) {
    await redis[Symbol.asyncDispose]();
    throw error;
  }
}

async function answersPing(socket: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const connection = createConnection(socket);
  connection.once('error', () => {
    resolve(false);
  });
  connection.once('connect', () => connection.write('PING\r\n'));
  connection.once('data', (data: Buffer) => {
    // While it loads its file it answers with an error.
    resolve(data.toString().startsWith('+PONG'));
  });
  try {
    return await promise;
  } finally {
    connection.destroy();
  }
}
