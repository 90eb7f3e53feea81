/** What a command is given: the surroundings of the process, and the options that many commands share. */

/** The variables of the process, read once in config.ts. */
export type Environment = Readonly<Record<string, string | undefined>>;

export interface Invocation {
  readonly environment: Environment;
  /** The words behind `pgcloned`, for a message that repeats them. Never a secret: those come by file and variable. */
  readonly words: readonly string[];
  /** Aborts at the first SIGINT, SIGTERM or SIGHUP. */
  readonly signal: AbortSignal;
}

export interface GlobalOptions {
  readonly config?: string;
  readonly json?: boolean;
  readonly logLevel?: string;
  readonly debug?: boolean;
}

export interface ProgressOptions {
  readonly progress: 'auto' | 'bar' | 'plain' | 'none';
  readonly progressInterval?: number;
}
