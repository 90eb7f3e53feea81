/**
 * The bridge to `remote.sh`, the one script that runs on the source host.
 *
 * The script travels as an argument of `sh -c`, so nothing is installed there and standard input stays free. Whatever a
 * login shell prints of its own accord comes before the marker and is dropped.
 */
import { readFileSync } from 'node:fs';
import { CloneError } from '@pgcloned/contract';
import {
  type CommandRunner,
  describeExit,
  quoteForShell,
  type RemoteExit,
} from '@pgcloned/process';
import { withLimit } from './waiting.ts';

const SCRIPT = readFileSync(new URL('./remote.sh', import.meta.url), 'utf8');

const MARKER = Buffer.from('\npgcloned answers\n');

/** `read` and `pages` exit with this when there is no such file. */
const STATUS_MISSING = 44;

export type Verb = 'probe' | 'exists' | 'read' | 'pages' | 'packages' | 'list' | 'serve' | 'sweep';

/** The command line for the login shell of the source host. `args` are visible there to everybody: no secrets. */
export function remoteCommand(verb: Verb, args: readonly string[]): string {
  return ['exec', 'sh', '-c', SCRIPT, 'pgcloned', verb, ...args].map(quoteForShell).join(' ');
}

export interface AskOptions {
  readonly signal: AbortSignal;
  /** How long it may say nothing, in milliseconds. */
  readonly limitMs: number;
  readonly outputBytesMax?: number;
}

/**
 * Runs a verb to its end.
 *
 * @returns What it answered, or null if it says that there is no such file.
 * @throws {CloneError} `REMOTE_COMMAND_FAILED` if it fails, `STALLED` if it says nothing for too long, and what the runner
 *   throws.
 */
export async function askRemote(
  runner: CommandRunner,
  verb: Verb,
  args: readonly string[],
  options: AskOptions,
): Promise<Buffer | null> {
  const command = remoteCommand(verb, args);
  const { limitMs, outputBytesMax } = options;
  const exit = await withLimit(
    async (signal, moves) =>
      await runner.run(command, {
        signal,
        onOutput: moves,
        ...(outputBytesMax !== undefined && { outputBytesMax }),
      }),
    { signal: options.signal, limitMs, expired: () => silent(runner, verb, limitMs) },
  );
  const begin = exit.stdout.indexOf(MARKER);
  if (exit.status === STATUS_MISSING && begin !== -1) return null;
  if (exit.status !== 0 || begin === -1) throw failed(runner, verb, exit);
  return exit.stdout.subarray(begin + MARKER.length);
}

/** Like {@link askRemote}, for verbs that never say that something is missing. */
export async function askRemoteText(
  runner: CommandRunner,
  verb: Exclude<Verb, 'read' | 'pages'>,
  args: readonly string[],
  options: AskOptions,
): Promise<string> {
  const answer = await askRemote(runner, verb, args, options);
  if (answer === null) throw new Error(`${verb} says that something is missing`);
  return answer.toString('utf8');
}

function failed(runner: CommandRunner, verb: Verb, exit: RemoteExit): CloneError {
  const [reason = ''] = exit.stderr.trim().split('\n').slice(-1);
  const denied = /permission denied/i.test(exit.stderr);
  return new CloneError(
    'REMOTE_COMMAND_FAILED',
    `the command ${verb} failed on ${runner.label}${reason === '' ? '' : `: ${reason}`}`,
    {
      facts: { host: runner.label, verb, exit: describeExit(exit), stderr: exit.stderr },
      hint: denied
        ? 'Connect by SSH as the user that owns the cluster, which is usually postgres.'
        : 'The SSH user needs a POSIX login shell that runs commands, with the usual tools of a Linux system in its PATH.',
    },
  );
}

function silent(runner: CommandRunner, verb: Verb, limitMs: number): CloneError {
  return new CloneError('STALLED', `the command ${verb} got no answer from ${runner.label}`, {
    facts: { host: runner.label, verb, limitMs },
    hint: 'See whether a file system of the source host hangs, such as a network mount that is gone.',
  });
}
