/**
 * Commands over an SSH connection, each in a channel of its own.
 *
 * sshd does not end a command when its channel or the whole connection goes (R7.5): the command only loses its input and
 * output. One that reads or writes ends by that; anything else runs on to its own end. So nothing here kills, and whatever
 * lives long on the other side needs a lease.
 */
import { addAbortListener } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import {
  type CommandRunner,
  type Exit,
  type ProcessRunner,
  type RemoteExit,
  type RemoteProcess,
  splitLines,
} from '@pgcloned/process';
import type ssh2 from 'ssh2';
import { openChannel, type Session } from './channel.ts';

/** The caller of a command that says more, as a list of a million files, raises it. */
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024;

/** Enough for a reason, bounded for a flood of warnings. */
const STDERR_CHARS_KEPT_MAX = 16 * 1024;

/** sshd confirms the end of a channel once its command has ended; one that is silent does not notice, and is left. */
const CLOSE_GRACE_MS = 1_000;

/**
 * Runs a command to its end.
 *
 * When it aborts, the command's channel is closed and the promise settles; see above for what becomes of the command.
 *
 * @throws {CloneError} `SOURCE_LOST` if the connection breaks, `REMOTE_COMMAND_FAILED` if the server refuses to run it or
 *   it says too much.
 */
export async function runCommand(
  session: Session,
  ...[command, options]: Parameters<CommandRunner['run']>
): Promise<RemoteExit> {
  const { signal, input = '', outputBytesMax = OUTPUT_BYTES_MAX, onOutput } = options;
  const { channel, exited, stderrTail } = await openCommand(session, command, signal);
  const stopped = Promise.withResolvers<null>();
  using _ = addAbortListener(signal, () => {
    stopped.resolve(null);
  });
  const chunks: Buffer[] = [];
  let outputBytes = 0;
  channel.on('data', (chunk: Buffer) => {
    outputBytes += chunk.length;
    onOutput?.();
    if (outputBytes <= outputBytesMax) chunks.push(chunk);
    else stopped.resolve(null);
  });
  channel.end(input);

  const exit = await Promise.race([exited, stopped.promise]);
  if (exit === null) {
    channel.close();
    await Promise.race([exited, delay(CLOSE_GRACE_MS, undefined, { ref: false })]);
  }
  signal.throwIfAborted();
  if (outputBytes > outputBytesMax) {
    throw new CloneError('REMOTE_COMMAND_FAILED', 'a remote command said more than expected', {
      facts: { limitBytes: outputBytesMax, stderr: stderrTail() },
    });
  }
  const lost = session.lost();
  if (exit === null || (lost !== null && !hasEnded(exit))) {
    throw lost ?? new Error('the channel was closed for no reason');
  }
  return { ...exit, stdout: Buffer.concat(chunks), stderr: stderrTail() };
}

/**
 * Starts a command that runs until the end of its input tells it to end.
 *
 * Aborting drops its channel: the command loses its input and output. If it does not end of that at once, `exited` settles
 * without a status.
 *
 * @throws As `runCommand`.
 */
export async function startCommand(
  session: Session,
  ...[command, { signal, onLine }]: Parameters<ProcessRunner['start']>
): Promise<RemoteProcess> {
  const { channel, exited, stderrTail } = await openCommand(session, command, signal);
  const lines = splitLines('utf8', onLine);
  channel.on('data', lines.push);
  const dropped = Promise.withResolvers<Exit>();
  const listener = addAbortListener(signal, () => {
    channel.close();
    setTimeout(() => {
      dropped.resolve({ status: null, signal: null });
    }, CLOSE_GRACE_MS).unref();
  });
  return {
    writeLine: (line) => {
      // Nothing can be said to one that has ended or is lost; `exited` tells.
      if (channel.writable) channel.write(`${line}\n`);
    },
    endInput: () => {
      channel.end();
    },
    exited: Promise.race([exited, dropped.promise]).then((exit) => {
      listener[Symbol.dispose]();
      lines.end();
      return exit;
    }),
    stderrTail,
  };
}

interface CommandChannel {
  readonly channel: ssh2.ClientChannel;
  /** Settles once all output was read; with neither status nor signal if the connection broke. Never rejects. */
  readonly exited: Promise<Exit>;
  readonly stderrTail: () => string;
}

async function openCommand(
  session: Session,
  command: string,
  signal: AbortSignal,
): Promise<CommandChannel> {
  return await openChannel(session, {
    request: (answered) => {
      session.client.exec(command, answered);
    },
    // The end of a short command may stand in the same packet.
    opened: watch,
    refused: (cause) =>
      new CloneError('REMOTE_COMMAND_FAILED', 'the SSH server refuses to run a command', {
        facts: { reason: String(cause) },
        hint: 'Let sshd run commands for this user, and allow as many at a time (MaxSessions in sshd_config) as by default.',
        cause,
      }),
    signal,
  });
}

function watch(channel: ssh2.ClientChannel): CommandChannel {
  let exit: Exit = { status: null, signal: null };
  let stderr = '';
  channel.on('exit', (status: number | null, signalName?: string) => {
    exit = { status, signal: (signalName ?? null) as NodeJS.Signals | null };
  });
  // What could not be written is no news: the end of the command or of the connection tells the story.
  channel.on('error', () => {});
  channel.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-STDERR_CHARS_KEPT_MAX);
  });
  const closed = [channel, channel.stderr].map(async (stream) => {
    await new Promise((resolve) => stream.once('close', resolve));
  });
  return {
    channel,
    exited: Promise.all(closed).then(() => exit),
    stderrTail: () => stderr.trimEnd(),
  };
}

function hasEnded({ status, signal }: Exit): boolean {
  return status !== null || signal !== null;
}
