/**
 * Child processes that always end.
 *
 * Each child leads a process group of its own, so that stopping it stops what it forked, and gets SIGKILL from the
 * kernel when we die (`setpriv --pdeathsig`), so that `kill -9` of the worker leaves no child behind. `spawn({ signal })`
 * is not used: it reports the end of a child that is still running.
 *
 * Not promised: that a grandchild which made a session of its own (a postmaster after `pg_ctl start`) ends too. It may
 * also hold our pipes open, so an exited child gets a short grace for the rest of its output, and then they are closed.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { addAbortListener, once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { type Command, describeExit, type Exit } from './command.ts';

/** A server that flushes its state on SIGTERM is done within seconds; after that it is stuck. */
const KILL_AFTER_MS = 5_000;

/** Whatever a child wrote before it ended is in the pipe already and read within milliseconds. */
const PIPE_GRACE_MS = 1_000;

/** Enough for a reason, bounded for a flood of warnings. */
const STDERR_LINES_KEPT_MAX = 40;

export interface StartOptions {
  /** A line of standard output, without its end. A carriage return ends a line too: rsync's progress. */
  readonly onLine?: (line: string) => void;
  readonly onErrorLine?: (line: string) => void;
  /** Each piece of standard output as bytes, in place of `onLine`. */
  readonly onData?: (chunk: Buffer) => void;
  readonly encoding?: 'utf8' | 'latin1';
  /** How long it may take over its stop signal before it gets SIGKILL, in milliseconds. */
  readonly killAfterMs?: number;
}

export interface RunningProcess {
  readonly pid: number;
  /** Settles once the child has exited and its output was read. Never rejects. */
  readonly exited: Promise<Exit>;
  /** The last lines of standard error. */
  readonly stderrTail: () => string;
  /** Signals its group and settles once it is gone; SIGKILL follows if it takes too long. */
  readonly stop: (signal?: NodeJS.Signals) => Promise<Exit>;
}

/**
 * Starts a program that runs beside us.
 *
 * @throws {CloneError} `TOOL_MISSING` if there is no such program.
 */
export async function startProcess(
  command: Command,
  options: StartOptions = {},
): Promise<RunningProcess> {
  const { file, args, env, cwd, input, inheritedFds = [] } = command;
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', file, ...args], {
    env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin', ...env },
    ...(cwd !== undefined && { cwd }),
    detached: true,
    stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe', ...inheritedFds],
  });
  const stderrLines: string[] = [];
  const encoding = options.encoding ?? 'utf8';
  if (options.onData !== undefined) child.stdout?.on('data', options.onData);
  else readLines(child.stdout, encoding, options.onLine ?? (() => {}));
  readLines(child.stderr, encoding, (line) => {
    stderrLines.push(line);
    if (stderrLines.length > STDERR_LINES_KEPT_MAX) stderrLines.shift();
    options.onErrorLine?.(line);
  });
  // A child that ends before it has read its input closes the pipe; its exit status tells the story.
  child.stdin?.on('error', () => {});
  if (input !== undefined) child.stdin?.end(input);

  const exited = exitOf(child);
  try {
    await once(child, 'spawn');
  } catch (cause) {
    throw new CloneError('TOOL_MISSING', 'setpriv is not installed', {
      hint: 'Install util-linux on this host.',
      cause,
    });
  }
  return {
    pid: child.pid ?? 0,
    exited,
    stderrTail: () => stderrLines.join('\n'),
    stop: async (signal = 'SIGTERM') => {
      const killTimer = setTimeout(() => {
        signalGroup(child, 'SIGKILL');
      }, options.killAfterMs ?? KILL_AFTER_MS);
      signalGroup(child, signal);
      try {
        return await exited;
      } finally {
        clearTimeout(killTimer);
      }
    },
  };
}

export interface RunOptions extends Omit<StartOptions, 'onData'> {
  readonly signal: AbortSignal;
  /** Exit statuses that are no error. Default: 0. */
  readonly accept?: readonly number[] | 'any';
  /** Output beyond this is an error: nothing here is expected to flood us. Default: 64 MiB. */
  readonly outputBytesMax?: number;
}

export interface Finished extends Exit {
  readonly stdout: Buffer;
  readonly stderr: string;
}

const OUTPUT_BYTES_MAX = 64 * 1024 * 1024;

/**
 * Runs a program to its end.
 *
 * The promise settles only after the child is gone, also when it was aborted: whoever awaits it may remove its files next.
 *
 * @throws {CloneError} `TOOL_MISSING` if there is no such program, `PROCESS_FAILED` if it ends with another status than
 *   the accepted ones.
 * @throws The signal's reason if `signal` aborts.
 */
export async function runProcess(command: Command, options: RunOptions): Promise<Finished> {
  options.signal.throwIfAborted();
  const chunks: Buffer[] = [];
  let outputBytes = 0;
  const limit = options.outputBytesMax ?? OUTPUT_BYTES_MAX;
  const running = await startProcess(command, {
    ...options,
    ...(options.onLine === undefined && {
      onData: (chunk: Buffer) => {
        outputBytes += chunk.length;
        if (outputBytes <= limit) chunks.push(chunk);
      },
    }),
  });
  const stop = () => void running.stop();
  using _ = addAbortListener(options.signal, stop);
  const exit = await running.exited;
  options.signal.throwIfAborted();
  const finished = { ...exit, stdout: Buffer.concat(chunks), stderr: running.stderrTail() };
  const { accept = [0] } = options;
  if (exit.status === 127 && /setpriv: failed to execute/.test(finished.stderr)) {
    throw new CloneError('TOOL_MISSING', `${command.file} is not installed`, {
      facts: { program: command.file },
      hint: `Install ${command.file} on this host, or put its directory on PATH.`,
    });
  }
  if (outputBytes > limit) {
    throw new CloneError('PROCESS_FAILED', `${command.file} said more than expected`, {
      facts: { outputBytes, limitBytes: limit },
    });
  }
  if (accept === 'any' || (exit.status !== null && accept.includes(exit.status))) return finished;
  throw new CloneError('PROCESS_FAILED', `${command.file} failed with ${describeExit(exit)}`, {
    facts: { program: command.file, exitStatus: exit.status, stderr: finished.stderr },
  });
}

/** Ends with the child's exit and the rest of its output, or the grace that a grandchild's pipes are given. */
async function exitOf(child: ChildProcess): Promise<Exit> {
  const closed = once(child, 'close').catch(() => undefined);
  const exit = await new Promise<Exit>((resolve) => {
    child.once('exit', (status, signal) => {
      resolve({ status, signal });
    });
    child.once('error', () => {
      resolve({ status: null, signal: null });
    });
  });
  const grace = new AbortController();
  await Promise.race([
    closed,
    delay(PIPE_GRACE_MS, undefined, { signal: grace.signal, ref: false }).catch(() => undefined),
  ]);
  grace.abort();
  child.stdout?.destroy();
  child.stderr?.destroy();
  return exit;
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  try {
    process.kill(-child.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function readLines(
  stream: NodeJS.ReadableStream | null,
  encoding: 'utf8' | 'latin1',
  onLine: (line: string) => void,
): void {
  if (stream === null) return;
  stream.setEncoding(encoding);
  createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY }).on('line', onLine);
}
