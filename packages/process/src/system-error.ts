/** What the system says when a call fails, as Node passes it on. */
import { constants } from 'node:os';

/** What a filesystem that finds itself damaged answers; it stands in no table of Node's. */
const EUCLEAN = 117;

const NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries({ ...constants.errno, EUCLEAN }).map(([name, errno]) => [errno, name]),
);

/** How Node begins the code of what libuv has no name for, such as EDQUOT. */
const UNNAMED = 'Unknown system error';

/** `ENOENT` and the like, or the code of any other error that has one; else null. */
export function codeOf(error: unknown): string | null {
  if (!(error instanceof Error)) return null;
  const { code, errno = 0 } = error as NodeJS.ErrnoException;
  if (typeof code !== 'string') return null;
  return (code.startsWith(UNNAMED) ? NAMES.get(-errno) : null) ?? code;
}

/** Whether nothing has this name. That something cannot be looked at does not mean that it is not there. */
export function isMissing(error: unknown): boolean {
  const code = codeOf(error);
  return code === 'ENOENT' || code === 'ENOTDIR';
}

/** For `catch`: what to go on with where there is no such file; any other error stays one. */
export function ifMissing<T>(instead: T): (error: unknown) => T {
  return (error) => {
    if (isMissing(error)) return instead;
    throw error;
  };
}

/** Whether there is no space left, or none that the quota of our user allows. */
export function isDiskFull(error: unknown): boolean {
  const code = codeOf(error);
  return code === 'ENOSPC' || code === 'EDQUOT';
}
