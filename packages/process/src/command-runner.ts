/**
 * Commands on a host that may be another one. `ssh` implements it, and `localRunner` does for this host;
 * whoever runs commands there is given one and does not care where they run.
 */
import type { Exit } from './command.ts';

export interface RemoteExit extends Exit {
  readonly stdout: Buffer;
  readonly stderr: string;
}

export interface RunRemoteOptions {
  readonly signal: AbortSignal;
  /** Written to its standard input: the only road for a secret. */
  readonly input?: string;
  /** Told of each piece of output. */
  readonly onOutput?: () => void;
  /** Output beyond this is an error, in bytes. */
  readonly outputBytesMax?: number;
}

/** A command that runs on the other side until it is told to end. */
export interface RemoteProcess {
  /** Writes one line to its standard input. */
  readonly writeLine: (line: string) => void;
  /** Closes its standard input; what obeys the end of its input ends now. */
  readonly endInput: () => void;
  /** Settles once the command has ended or the connection is lost (then with neither status nor signal). */
  readonly exited: Promise<Exit>;
  readonly stderrTail: () => string;
}

export interface CommandRunner {
  /** For messages: `postgres@db1:22`. */
  readonly label: string;
  /**
   * Runs `command` with the login shell of the other side. Any exit status is an answer, not an error.
   *
   * @throws {CloneError} `SOURCE_LOST` if the connection breaks; the signal's reason if it aborts.
   */
  readonly run: (command: string, options: RunRemoteOptions) => Promise<RemoteExit>;
}

/** One that can also keep a command running, with an input and lines of output. */
export interface ProcessRunner extends CommandRunner {
  readonly start: (
    command: string,
    options: { readonly signal: AbortSignal; readonly onLine: (line: string) => void },
  ) => Promise<RemoteProcess>;
}

/**
 * One word of a POSIX shell's command line, whatever `text` holds.
 *
 * @throws {RangeError} If it holds a NUL, which no argument of a program can: our bug.
 */
export function quoteForShell(text: string): string {
  if (text.includes('\0')) throw new RangeError('an argument cannot hold a NUL');
  // A word with `=` is quoted too: as the first of a command it would be an assignment.
  return /^[A-Za-z0-9_./:@%+,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
