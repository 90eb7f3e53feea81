/**
 * The process of the `pgcloned` command: the only module with signal handlers and `process.exit`.
 *
 * The first SIGINT, SIGTERM or SIGHUP asks whatever runs to stop and tidy up; a second one ends the process at once.
 */
import { CloneError, EXIT_STATUS } from '@pgcloned/contract';
import { readEnvironment } from './config.ts';
import { formatError, formatErrorJson } from './error-output.ts';
import { buildProgram, parseErrorOf } from './program.ts';

const STOP_SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;

const stop = new AbortController();
for (const [name, number] of Object.entries(STOP_SIGNALS)) {
  process.on(name, () => {
    // 128 + number is how a shell reports a process that a signal has ended.
    if (stop.signal.aborted) process.exit(128 + number);
    stop.abort(
      new CloneError('CANCELLED', `stopped by ${name}`, {
        hint: 'What had been begun was undone, unless leftovers are named.',
      }),
    );
  });
}

// Neither a reader that leaves (`| head`) nor a full disk of the log must stop a clone in its middle.
const unsaid: NodeJS.ErrnoException[] = [];
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE' && stream === process.stdout) unsaid.push(error);
  });
}

const words = process.argv.slice(2);
// Known before the options are parsed, because a mistake in them is also reported in one of the two ways.
const json = words.includes('--json');
const debug = words.includes('--debug') || words.includes('--log-level=debug');

process.on('uncaughtException', fail);

try {
  const program = buildProgram({
    environment: readEnvironment(),
    words,
    signal: stop.signal,
  });
  await program.parseAsync(words, { from: 'user' });
  const [lost] = unsaid;
  if (lost !== undefined) fail(notSaid(lost));
  // What a library still holds open (a timer of a queue) must not keep the process.
  process.exit(EXIT_STATUS.ok);
} catch (error) {
  const parseError = parseErrorOf(error);
  if (parseError === null) process.exit(EXIT_STATUS.ok);
  fail(parseError);
}

function notSaid(cause: NodeJS.ErrnoException): CloneError {
  return new CloneError('INTERNAL', 'standard output cannot be written', {
    facts: { reason: cause.code ?? null },
    hint: 'What was asked for was done, and could not be said: make room where the output goes.',
    cause,
  });
}

function fail(error: unknown): never {
  const { text, exitStatus } = json ? formatErrorJson(error) : formatError(error, { debug });
  process.stderr.write(`${text}\n`);
  process.exit(exitStatus);
}
