/** What a program is given, and how its end is described. */

export interface Command {
  readonly file: string;
  readonly args: readonly string[];
  /** The whole environment of the child. Secrets go here or to its input, never into `args`: `ps` shows those. */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Written to standard input, which is then closed. Without it the child reads from /dev/null. */
  readonly input?: string | Buffer;
  /** Open file descriptors that the child shall hold as 3, 4, …: the locks that must outlive us as long as it does. */
  readonly inheritedFds?: readonly number[];
}

export interface Exit {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** `exit status 1` or `signal SIGKILL`. */
export function describeExit({ status, signal }: Exit): string {
  return signal === null ? `exit status ${String(status)}` : `signal ${signal}`;
}
