/**
 * Child processes that always end.
 *
 * Each child leads a process group of its own, so that stopping it stops what it forked, and gets SIGKILL from the
 * kernel when we die (`setpriv --pdeathsig`), so that `kill -9` of the worker leaves no child behind. Whoever kills the
 * child kills its group: what it forked has nobody left to tell. `spawn({ signal })` is not used: it reports the end of a
 * child that is still running.
 *
 * Not promised: that a grandchild which made a session of its own (a postmaster after `pg_ctl start`) ends too. It may
 * also hold our pipes open, so they are closed soon after the child itself is gone.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { addAbortListener, once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { setTimeout as delay, setImmediate as loopTurn } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { type Command, describeExit, type Exit } from './command.ts';
import { splitLines } from './line-splitter.ts';
import { groupIsGone, signalGroup } from './process-group.ts';
import { findProgram } from './program.ts';

/** A server that flushes its state on SIGTERM is done within seconds; after that it is stuck. */
const KILL_AFTER_MS = 5_000;

/** SIGKILL is not refused, but a process in an uninterruptible read dies only when the disk answers. */
const KILLED_MS_MAX = 10_000;

const GROUP_POLL_MS = 10;

const ACTIVITY_LOOK_MS = 1_000;

/** Whatever a child wrote before its end is in the pipe already: silence this long means that all of it was read. */
const PIPE_QUIET_MS = 500;

/** Against a grandchild that holds the pipe and never stops talking. */
const PIPE_ROUNDS_MAX = 20;

/** Enough for a reason, bounded for a flood of warnings. */
const STDERR_LINES_KEPT_MAX = 40;
const STDERR_LINE_CHARS_KEPT_MAX = 1_000;

/**
 * The kernel kills nobody whose parent died before that was asked for, in the milliseconds after the fork. So the program
 * is only begun if the parent is still the one that the first argument names. PWD is the shell's own addition.
 */
const UNLESS_ORPHANED = '[ "$PPID" = "$1" ] || exit; shift; unset PWD; exec "$@"';

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
  /**
   * Settles once the child has exited and its output was read; if a signal has ended it, once the whole group is gone.
   * Never rejects.
   */
  readonly exited: Promise<Exit>;
  /** The last lines of standard error. */
  readonly stderrTail: () => string;
  /**
   * Signals its group (default: SIGTERM) and settles once the whole group is gone; SIGKILL follows if that takes too
   * long. Does nothing to a child that has exited by itself. A child that runs as somebody else cannot be signalled;
   * then this waits for its own end.
   */
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
  const { file, args, cwd, input, inheritedFds = [] } = command;
  const path = command.env.PATH ?? process.env.PATH ?? '/usr/bin:/bin';
  for (const program of [file, 'setpriv']) {
    if ((await findProgram(program, { path, cwd })) === null) throw missing(program);
  }
  const bound = ['--pdeathsig', 'KILL', '--', '/bin/sh', '-c', UNLESS_ORPHANED, 'sh'];
  const child = spawn('setpriv', [...bound, String(process.pid), file, ...args], {
    env: { PATH: path, ...command.env },
    ...(cwd !== undefined && { cwd }),
    detached: true,
    stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe', ...inheritedFds],
  });
  await once(child, 'spawn');
  const { pid } = child;
  if (pid === undefined) throw new Error(`${file} was started without a pid`);

  const encoding = options.encoding ?? 'utf8';
  const output = splitLines(encoding, options.onLine ?? (() => {}));
  child.stdout?.on('data', options.onData ?? output.push);
  const stderrLines: string[] = [];
  const errors = splitLines(encoding, (line) => {
    stderrLines.push(line.slice(0, STDERR_LINE_CHARS_KEPT_MAX));
    if (stderrLines.length > STDERR_LINES_KEPT_MAX) stderrLines.shift();
    options.onErrorLine?.(line);
  });
  child.stderr?.on('data', errors.push);
  let isStopping = false;
  const exited = exitOf(child, {
    killed: () => {
      // Its process was reaped in this very moment, so the number is nobody else's yet.
      if (!isStopping) signalGroup(pid, 'SIGKILL');
    },
  })
    .then(async (exit) => {
      if (exit.signal !== null && !isStopping) await groupGone(pid, KILLED_MS_MAX);
      return exit;
    })
    .finally(() => {
      output.end();
      errors.end();
    });
  // A child that ends before it has read its input closes the pipe; its exit status tells the story.
  child.stdin?.on('error', () => {});
  if (input !== undefined) child.stdin?.end(input);

  return {
    pid,
    exited,
    stderrTail: () => stderrLines.join('\n'),
    stop: async (signal = 'SIGTERM') => {
      // The number of a process that was reaped may belong to a stranger by now.
      if (child.exitCode !== null || child.signalCode !== null) return await exited;
      isStopping = true;
      signalGroup(pid, signal);
      const killTimer = setTimeout(() => {
        signalGroup(pid, 'SIGKILL');
      }, options.killAfterMs ?? KILL_AFTER_MS);
      try {
        const exit = await exited;
        await groupGone(pid, (options.killAfterMs ?? KILL_AFTER_MS) + KILLED_MS_MAX);
        return exit;
      } finally {
        clearTimeout(killTimer);
      }
    },
  };
}

export interface RunOptions extends Omit<StartOptions, 'onData'> {
  readonly signal: AbortSignal;
  /** How long it may use neither processor nor files before it counts as hanging, in milliseconds. Default: for ever. */
  readonly stallMs?: number;
  /** Exit statuses that are no error. Default: 0. */
  readonly accept?: readonly number[] | 'any';
  /** Told of each piece of standard output, unless its lines go to `onLine`. */
  readonly onOutput?: () => void;
  /** More output than this stops the program: nothing here is expected to flood us. Default: 64 MiB. */
  readonly outputBytesMax?: number;
}

export interface Finished extends Exit {
  /** Empty if the lines went to `onLine`. */
  readonly stdout: Buffer;
  /** The last lines. */
  readonly stderr: string;
}

const OUTPUT_BYTES_MAX = 64 * 1024 * 1024;

/**
 * Runs a program to its end.
 *
 * The promise settles only after the child is gone, also when it was aborted: whoever awaits it may remove its files next.
 *
 * @throws {CloneError} `TOOL_MISSING` if there is no such program, `PROCESS_FAILED` if it ends with another status than
 *   the accepted ones or says more than `outputBytesMax`, `STALLED` if it hangs.
 * @throws The signal's reason if `signal` aborts.
 */
export async function runProcess(command: Command, options: RunOptions): Promise<Finished> {
  options.signal.throwIfAborted();
  const { accept = [0], outputBytesMax = OUTPUT_BYTES_MAX } = options;
  const chunks: Buffer[] = [];
  let outputBytes = 0;
  let stopped: Promise<Exit> | undefined;
  const stop = () => {
    stopped ??= running.stop();
  };
  const running = await startProcess(command, {
    ...options,
    ...(options.onLine === undefined && {
      onData: (chunk: Buffer) => {
        outputBytes += chunk.length;
        options.onOutput?.();
        if (outputBytes <= outputBytesMax) chunks.push(chunk);
        else stop();
      },
    }),
  });
  using _ = addAbortListener(options.signal, stop);
  const { file } = command;
  const { stallMs } = options;
  let hangs = false;
  const watch =
    stallMs === undefined
      ? null
      : watchActivity(running.pid, stallMs, () => {
          hangs = true;
          stop();
        });
  const exit = await running.exited;
  clearInterval(watch ?? undefined);
  await stopped;
  options.signal.throwIfAborted();
  if (hangs) {
    throw new CloneError('STALLED', `${file} hangs`, {
      facts: { program: file, idleMs: stallMs ?? null },
      hint: 'See whether a disk of this host hangs, or who has stopped the process.',
    });
  }
  const stderr = running.stderrTail();
  if (outputBytes > outputBytesMax) {
    throw new CloneError('PROCESS_FAILED', `${file} said more than expected`, {
      facts: { program: file, outputBytesMax },
    });
  }
  if (accept === 'any' || (exit.status !== null && accept.includes(exit.status))) {
    return { ...exit, stdout: Buffer.concat(chunks), stderr };
  }
  throw new CloneError('PROCESS_FAILED', `${file} failed with ${describeExit(exit)}`, {
    facts: { program: file, exitStatus: exit.status, exitSignal: exit.signal, stderr },
  });
}

/** Times of use and bytes read, as the kernel counts them. */
function watchActivity(pid: number, stallMs: number, stalled: () => void): NodeJS.Timeout {
  let mark = '';
  let movedAtMs = performance.now();
  return setInterval(
    () => {
      const now = activityOf(pid);
      if (now === mark && performance.now() - movedAtMs > stallMs) stalled();
      if (now === mark) return;
      mark = now;
      movedAtMs = performance.now();
    },
    Math.min(ACTIVITY_LOOK_MS, stallMs / 4),
  );
}

function activityOf(pid: number): string {
  try {
    // The name, in brackets, may hold anything.
    const [, after = ''] = readFileSync(`/proc/${String(pid)}/stat`, 'latin1').split(
      /\) (?!.*\) )/s,
    );
    const fields = after.split(' ');
    const io = readFileSync(`/proc/${String(pid)}/io`, 'latin1');
    return [fields[11], fields[12], io].join();
  } catch {
    // It has just ended.
    return '';
  }
}

function missing(program: string): CloneError {
  return new CloneError('TOOL_MISSING', `${program} is not installed`, {
    facts: { program },
    hint: program.includes('/')
      ? `Install the package that brings ${program} on this host.`
      : `Install ${program} on this host, or put its directory on PATH.`,
  });
}

async function exitOf(
  child: ChildProcess,
  { killed }: { readonly killed: () => void },
): Promise<Exit> {
  const closed = new Promise<void>((resolve) => {
    child.once('close', () => {
      resolve();
    });
  });
  const exit = await new Promise<Exit>((resolve) => {
    child.once('exit', (status, signal) => {
      if (signal !== null) killed();
      resolve({ status, signal });
    });
  });
  await outputRead(child, closed);
  child.stdout?.destroy();
  child.stderr?.destroy();
  return exit;
}

/** Waits until both pipes were closed at their other end, or somebody else holds them and says nothing. */
async function outputRead(child: ChildProcess, closed: Promise<void>): Promise<void> {
  const pipes = [child.stdout, child.stderr] as (Socket | null)[];
  const bytesRead = () => pipes.reduce((sum, pipe) => sum + (pipe?.bytesRead ?? 0), 0);
  let open = true;
  const closing = closed.then(() => {
    open = false;
  });
  for (let round = 0; open && round < PIPE_ROUNDS_MAX; round += 1) {
    const bytesBefore = bytesRead();
    const quiet = new AbortController();
    await Promise.race([closing, delay(PIPE_QUIET_MS, undefined, { signal: quiet.signal })]);
    quiet.abort();
    // After a busy moment of ours a timer can fire before the pipes had their turn.
    if (open) await loopTurn();
    if (bytesRead() === bytesBefore) return;
  }
}

async function groupGone(groupId: number, limitMs: number): Promise<void> {
  for (let waitedMs = 0; waitedMs < limitMs; waitedMs += GROUP_POLL_MS) {
    if (await groupIsGone(groupId)) return;
    await delay(GROUP_POLL_MS);
  }
}
