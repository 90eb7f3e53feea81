/** Single files of the source host, read or looked for through the file channel. */
import type { CommandRunner } from '@pgcloned/process';
import { askRemote, askRemoteText } from './remote-script.ts';

/** One small file. A network mount may take its time, and one that is gone takes for ever. */
const FILE_LIMIT_MS = 30_000;

/**
 * At most `bytesMax` bytes from the beginning of a file, in one read(2) call: for pg_control, whose bytes change under
 * us (R2.3), and for configuration files. One call is no promise of one moment, so the caller checks what it got.
 *
 * @returns Null if there is no such file.
 * @throws {CloneError} `REMOTE_COMMAND_FAILED` if it cannot be read, and what the runner throws.
 */
export async function readRemoteFile(
  runner: CommandRunner,
  o: { readonly path: string; readonly bytesMax: number; readonly signal: AbortSignal },
): Promise<Buffer | null> {
  return await askRemote(runner, 'read', [o.path, String(o.bytesMax)], {
    signal: o.signal,
    limitMs: FILE_LIMIT_MS,
  });
}

/**
 * Pages of a file that somebody writes, each by one read(2) call.
 *
 * @returns What there is of them: less at the end of the file. Null if there is no such file.
 * @throws {CloneError} `REMOTE_COMMAND_FAILED` if it cannot be read, and what the runner throws.
 */
export async function readRemotePages(
  runner: CommandRunner,
  o: {
    readonly path: string;
    readonly pageBytes: number;
    /** The first one, counted from the beginning of the file. */
    readonly first: number;
    readonly count: number;
    readonly signal: AbortSignal;
  },
): Promise<Buffer | null> {
  const args = [o.path, ...[o.pageBytes, o.first, o.count].map(String)];
  return await askRemote(runner, 'pages', args, { signal: o.signal, limitMs: FILE_LIMIT_MS });
}

/**
 * Whether there is anything of that name, a directory or a dangling link included.
 *
 * @throws {CloneError} `REMOTE_COMMAND_FAILED` if that cannot be told, and what the runner throws.
 */
export async function remoteExists(
  runner: CommandRunner,
  o: { readonly path: string; readonly signal: AbortSignal },
): Promise<boolean> {
  const answer = await askRemoteText(runner, 'exists', [o.path], {
    signal: o.signal,
    limitMs: FILE_LIMIT_MS,
  });
  return answer === 'yes\n';
}
