/**
 * A Redis of our own, for whoever has configured none.
 *
 * It listens on a unix socket in a directory that only its owner may enter, and nowhere else, so it needs no password. An
 * append-only file keeps what it knows. It dies with us (`startProcess`), and is started again when it dies alone. The
 * caller holds the lock on the state directory: two servers on one file would destroy it.
 */
import { chmod, mkdir } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, toCloneError } from '@pgcloned/contract';
import { describeExit, type RunningProcess, startProcess } from '@pgcloned/process';

/** The kernel's limit for the path of a socket, less the zero at its end. */
const SOCKET_PATH_BYTES_MAX = 107;

/** Reading the file of a full history takes seconds; the process is watched meanwhile. */
const READY_MS_MAX = 60_000;
const READY_POLL_MS = 10;

/** A server that falls again so soon has a reason that another start does not cure. */
const STEADY_MS = 10_000;
const FALLS_MAX = 5;
const RESTART_DELAY_MS = 500;

const OUTPUT_LINES_KEPT_MAX = 20;

export interface EmbeddedRedis extends AsyncDisposable {
  /** `unix://…`. */
  readonly url: string;
  /** Settles with the reason once the server cannot be kept running. */
  readonly exited: Promise<CloneError>;
}

/** Where the server of a directory listens, while it runs. */
export function embeddedRedisUrl(directory: string): string {
  return `unix://${join(directory, 'redis.sock')}`;
}

/**
 * @param o.directory Is made if it is missing; becomes 0700.
 * @throws {CloneError} `TOOL_MISSING` if no Redis is installed, `PROCESS_FAILED` if it does not start,
 *   `CONFIGURATION_INVALID` if the path is too long for a socket.
 */
export async function startEmbeddedRedis(o: {
  readonly directory: string;
  /** Hears that it fell and was started again. */
  readonly onError: (error: Error) => void;
}): Promise<EmbeddedRedis> {
  const url = embeddedRedisUrl(o.directory);
  const socket = url.slice('unix://'.length);
  if (Buffer.byteLength(socket) > SOCKET_PATH_BYTES_MAX) {
    throw new CloneError('CONFIGURATION_INVALID', 'the state directory has too long a path', {
      facts: { socket, bytesMax: SOCKET_PATH_BYTES_MAX },
      hint: 'Choose a state directory with a shorter path, or a Redis of your own.',
    });
  }
  await mkdir(o.directory, { recursive: true, mode: 0o700 });
  await chmod(o.directory, 0o700);

  let server = await startServer(o.directory, socket);
  const closing = new AbortController();
  const { promise: exited, resolve: giveUp } = Promise.withResolvers<CloneError>();

  const keepRunning = async (): Promise<void> => {
    for (let falls = 0; falls < FALLS_MAX; falls++) {
      const startedAt = performance.now();
      const exit = await server.process.exited;
      if (closing.signal.aborted) return;
      if (performance.now() - startedAt > STEADY_MS) falls = 0;
      o.onError(fallen(server, describeExit(exit)));
      await delay(RESTART_DELAY_MS * falls, undefined, { signal: closing.signal });
      server = await startServer(o.directory, socket);
      if (closing.signal.aborted) await server.process.stop();
    }
    throw fallen(server, describeExit(await server.process.exited));
  };
  const kept = keepRunning().catch((error: unknown) => {
    if (!closing.signal.aborted) giveUp(toCloneError(error));
  });

  return {
    url,
    exited,
    [Symbol.asyncDispose]: async () => {
      closing.abort();
      await server.process.stop();
      await kept;
    },
  };
}

interface Server {
  readonly process: RunningProcess;
  readonly output: readonly string[];
}

async function startServer(directory: string, socket: string): Promise<Server> {
  const output: string[] = [];
  const process = await startProcess(
    {
      file: 'redis-server',
      args: [
        ...['--port', '0'],
        ...['--unixsocket', socket, '--unixsocketperm', '700'],
        ...['--dir', directory],
        ...['--appendonly', 'yes', '--save', ''],
        // Losing a record without a word is worse than refusing a new one.
        ...['--maxmemory-policy', 'noeviction'],
      ],
      env: {},
    },
    {
      onLine: (line) => {
        output.push(line);
        if (output.length > OUTPUT_LINES_KEPT_MAX) output.shift();
      },
    },
  );
  const server = { process, output };
  let exit: string | undefined;
  void process.exited.then((value) => {
    exit = describeExit(value);
  });
  const deadlineMs = performance.now() + READY_MS_MAX;
  while (!(await answersPing(socket))) {
    if (exit !== undefined) throw fallen(server, exit);
    if (performance.now() > deadlineMs) {
      await process.stop();
      throw fallen(server, 'no answer');
    }
    await delay(READY_POLL_MS);
  }
  return server;
}

function fallen({ process, output }: Server, how: string): CloneError {
  const said = [...output, process.stderrTail()].join('\n').trim();
  return new CloneError('PROCESS_FAILED', `the embedded redis-server ended with ${how}`, {
    facts: { program: 'redis-server', output: said },
    hint: 'Its last lines tell why.',
  });
}

/** Whether a server that has read its file answers there. */
async function answersPing(socket: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const connection = createConnection(socket);
  connection.once('error', () => {
    resolve(false);
  });
  connection.once('close', () => {
    resolve(false);
  });
  connection.once('connect', () => connection.write('PING\r\n'));
  connection.once('data', (answer) => {
    resolve(answer.toString().startsWith('+PONG'));
  });
  try {
    return await promise;
  } finally {
    connection.destroy();
  }
}
