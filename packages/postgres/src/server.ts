/**
 * Starts and stops a server on this host that is not our child.
 *
 * A replica must survive the worker that started it: it leads a session of its own, holds none of our pipes, and no
 * death signal is set on it. Starting never shows a path to a shell: `pg_ctl` puts `-D` and `-l` into a command line for
 * sh between double quotes, where `$(…)` is alive, and paths come from requests. So it gets the directory through its
 * environment and as a quoted option, and the log as an open file.
 *
 * Started means that the postmaster lives. Until it is consistent it takes no sessions, which may take as long as there
 * is WAL to replay; whoever waits for that looks at `status` and at what the server says.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type FileHandle, open } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, type StartMethod } from '@pgcloned/contract';
import { codeOf, findProgram, quoteForShell, runProcess } from '@pgcloned/process';
import { isServerRunning, type PostmasterPid, removeStaleLockFiles } from './postmaster-pid.ts';

export interface StartServerOptions {
  readonly method: StartMethod;
  readonly binDirectory: string;
  readonly dataDirectory: string;
  /** Where the configuration lies outside the data directory; null: inside. */
  readonly configFile: string | null;
  readonly major: number;
  /** For `{port}` in a command; the server itself takes its port from its configuration. */
  readonly port: number;
  /** Where the server writes until its configuration says otherwise. Appended to; made with mode 0600. */
  readonly logFile: string;
  /**
   * How long there may be no postmaster after the command has ended, in milliseconds: a unit of systemd, for instance, may
   * start it later.
   */
  readonly stallMs: number;
  readonly signal: AbortSignal;
}

/** In which what starts it is looked for, whatever the worker's own is. */
const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** What pg_ctl waits for a server that has WAL to replay, before it leaves the waiting to us. */
const PG_CTL_WAIT_S = 3;
const POLL_MS = 20;
const STOP_WAIT_S = 3_600;
const LOG_LINES_SHOWN = 20;
const LOG_BYTES_READ = 64 * 1024;

/**
 * Settles once the postmaster lives and, if that takes only seconds, takes sessions. When it throws, it has started none.
 *
 * @returns `status` is `ready`, `standby` (takes no sessions by its configuration) or `starting` (still recovering).
 * @throws {CloneError} `REPLICA_START_FAILED` with the last lines of the log, `TARGET_IN_USE`, `TOOL_MISSING`.
 */
export async function startServer(options: StartServerOptions): Promise<PostmasterPid> {
  const { dataDirectory, logFile, signal } = options;
  signal.throwIfAborted();
  const other = await isServerRunning(dataDirectory);
  if (other !== null) {
    throw new CloneError('TARGET_IN_USE', 'a server runs on the data directory already', {
      facts: { dataDirectory, pid: other.pid },
      hint: `Stop it first: pg_ctl stop -D ${quoteForShell(dataDirectory)}`,
    });
  }
  await removeStaleLockFiles(dataDirectory);
  const [file = '', ...args] = startCommand(options);
  const logOffset = await sizeOf(logFile);
  try {
    const status = await runDetached({
      file,
      args,
      env: startEnvironment(options),
      logFile,
      signal,
    });
    const limitMs = performance.now() + (status === 0 ? options.stallMs : 0);
    for (;;) {
      const postmaster = await isServerRunning(dataDirectory);
      // pg_ctl also fails when recovery outlasts its patience; the server is what counts.
      if (postmaster?.port != null) return postmaster;
      if (performance.now() >= limitMs && postmaster === null) {
        throw new CloneError('REPLICA_START_FAILED', `${file} did not start the server`, {
          facts: {
            dataDirectory,
            exitStatus: status,
            logFile,
            log: await logTail(logFile, logOffset),
          },
          hint: `Read the end of ${logFile}, mend what it names, and start the server on ${dataDirectory}.`,
        });
      }
      await delay(POLL_MS, undefined, { signal });
    }
  } catch (error) {
    // What was begun is ended before anybody may touch the directory, however long its last checkpoint takes.
    await stopServer({ ...options, signal: new AbortController().signal }).catch(() => {
      // The error of the start is the one to tell.
    });
    signal.throwIfAborted();
    throw error;
  }
}

interface StopServerOptions {
  readonly binDirectory: string;
  readonly dataDirectory: string;
  readonly signal: AbortSignal;
  /**
   * fast: sessions are ended, and a last checkpoint is written; immediate: nothing more is written, which costs the next
   * start a recovery and loses nothing that was committed.
   */
  readonly mode?: 'fast' | 'immediate';
  /** How long a fast shutdown may take before an immediate one ends it, in milliseconds; left out: as long as it takes. */
  readonly fastMsMax?: number;
}

/**
 * Returns at once if no server runs.
 *
 * @throws {CloneError} `PROCESS_FAILED` if it does not stop.
 */
export async function stopServer({
  binDirectory,
  dataDirectory,
  signal,
  mode = 'fast',
  fastMsMax,
}: StopServerOptions): Promise<void> {
  if ((await isServerRunning(dataDirectory)) === null) return;
  const stop = async (how: 'fast' | 'immediate', waitS: number) => {
    await runProcess(
      {
        file: join(binDirectory, 'pg_ctl'),
        args: ['stop', '-D', dataDirectory, '-m', how, '-w', '-t', String(waitS)],
        env: { LC_ALL: 'C' },
      },
      { signal },
    );
  };
  const waitS = fastMsMax === undefined ? STOP_WAIT_S : Math.max(1, Math.ceil(fastMsMax / 1000));
  try {
    await stop(mode, waitS);
  } catch (error) {
    signal.throwIfAborted();
    // It may have ended by itself in this moment, which pg_ctl calls a failure.
    if ((await isServerRunning(dataDirectory)) === null) return;
    if (fastMsMax === undefined || mode === 'immediate') throw error;
    await stop('immediate', STOP_WAIT_S);
  }
}

/**
 * Whether {@link startServer} would have what it starts with; nothing is started.
 *
 * @throws {CloneError} `REPLICA_START_FAILED`, `TOOL_MISSING`.
 */
export async function checkStartMethod(options: StartedBy): Promise<void> {
  const [file = ''] = startCommand(options);
  if ((await findProgram(file, { path: PATH })) === null) throw notInstalled(file);
}

type StartedBy = Omit<StartServerOptions, 'logFile' | 'stallMs' | 'signal'>;

function startCommand(options: StartedBy): readonly string[] {
  const { method, binDirectory, dataDirectory, configFile, major, port } = options;
  if ('command' in method) {
    const values: Record<string, string> = {
      dataDirectory,
      port: String(port),
      major: String(major),
    };
    return method.command.map((argument) =>
      argument.replace(/\{(dataDirectory|port|major)\}/g, (_, name: string) => values[name] ?? ''),
    );
  }
  if (method.method === 'pg_ctlcluster') {
    return ['pg_ctlcluster', String(major), debianClusterName(options), 'start'];
  }
  const serverArgs = [
    '-D',
    dataDirectory,
    ...(configFile === null ? [] : ['-c', `config_file=${configFile}`]),
  ];
  return [
    join(binDirectory, 'pg_ctl'),
    'start',
    '--wait',
    `--timeout=${String(PG_CTL_WAIT_S)}`,
    '--silent',
    `--options=${serverArgs.map(quoteForShell).join(' ')}`,
  ];
}

function startEnvironment({ method, dataDirectory }: StartServerOptions): Record<string, string> {
  return 'method' in method && method.method === 'pg_ctl' ? { PGDATA: dataDirectory } : {};
}

/** Debian calls a cluster by a name, and that is the name of the directory of its configuration (R9.7). */
function debianClusterName({ configFile, dataDirectory, major }: StartedBy): string {
  if (configFile !== null) return basename(dirname(configFile));
  throw new CloneError('REPLICA_START_FAILED', 'pg_ctlcluster knows no cluster of this directory', {
    facts: { dataDirectory, major },
    hint: `Make its configuration below /etc/postgresql/${String(major)} with data_directory = '${dataDirectory}', or set worker.start to method pg_ctl.`,
  });
}

/** Runs the command in a session of its own, with the log for its output, and waits for its exit status. */
async function runDetached({
  file,
  args,
  env,
  logFile,
  signal,
}: {
  readonly file: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly logFile: string;
  readonly signal: AbortSignal;
}): Promise<number | null> {
  await using log = await open(logFile, 'a', 0o600);
  // From here to the listener nothing is awaited, or a cancel in between would be heard by nobody.
  signal.throwIfAborted();
  const child = spawn(file, args, {
    cwd: '/',
    env: { PATH, ...env },
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
  });
  const kill = () => void child.kill('SIGTERM');
  signal.addEventListener('abort', kill, { once: true });
  try {
    const [status] = (await once(child, 'exit')) as [number | null];
    signal.throwIfAborted();
    return status;
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') throw error;
    throw notInstalled(file, error);
  } finally {
    signal.removeEventListener('abort', kill);
  }
}

function notInstalled(file: string, cause?: unknown): CloneError {
  return new CloneError('TOOL_MISSING', `${file} is not installed`, {
    facts: { program: file },
    hint: `Install ${file} on this host, or set worker.start to another method.`,
    cause,
  });
}

async function sizeOf(path: string): Promise<number> {
  return await withLog(path, async (log) => (await log.stat()).size, 0);
}

/** The last lines that were written after `offset`, in bytes; none if there is no log. */
export async function logTail(path: string, offset = 0): Promise<string> {
  return await withLog(
    path,
    async (log) => {
      const { size } = await log.stat();
      const from = Math.max(offset, size - LOG_BYTES_READ);
      const buffer = Buffer.alloc(Math.max(0, size - from));
      const { bytesRead } = await log.read(buffer, 0, buffer.length, from);
      const lines = buffer.toString('utf8', 0, bytesRead).trimEnd().split('\n');
      return lines.slice(-LOG_LINES_SHOWN).join('\n');
    },
    '',
  );
}

/** @returns `otherwise` if there is no such file. */
async function withLog<T>(
  path: string,
  read: (log: FileHandle) => Promise<T>,
  otherwise: T,
): Promise<T> {
  let log: FileHandle;
  try {
    log = await open(path, 'r');
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return otherwise;
    throw error;
  }
  await using _ = log;
  return await read(log);
}
