/** What a program is given, and how its end is described. */

export interface Command {
  readonly file: string;
  readonly args: readonly string[];
  /**
   * The whole environment of the child; only PATH is ours unless it is given. Secrets go here or to its input, never into
   * `args`: `ps` shows those.
   */
  readonly env: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Written to standard input, which is then closed. Without it the child reads from /dev/null. */
  readonly input?: string | Buffer;
  /** Open file descriptors that the child shall hold as 3, 4, …: the locks that must outlive us as long as it does. */
  readonly inheritedFds?: readonly number[];
}

/** One of the two is set; neither if a connection was lost before the end of the program was known. */
export interface Exit {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** `exit status 1`, `signal SIGKILL`, or `no exit status` where a connection broke first. */
export function describeExit({ status, signal }: Exit): string {
  if (signal !== null) return `signal ${signal}`;
  return status === null ? 'no exit status' : `exit status ${String(status)}`;
}
