/**
 * Reading files where others may put files, too: what they put there is not followed, not waited for and not read without end.
 */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { codeOf, isMissing } from './system-error.ts';

const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants;

const BYTES_MAX = 1024 * 1024;

interface PlainFile {
  readonly text: string;
  /** Whether it belongs to the user that we run as. */
  readonly isOurs: boolean;
}

/** @returns Null if there is no file of this name, or a link, a pipe, a device or more than a mebibyte. */
export async function readPlainFile(path: string): Promise<PlainFile | null> {
  try {
    await using file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    const stats = await file.stat();
    if (!stats.isFile() || stats.size > BYTES_MAX) return null;
    return { text: await file.readFile('utf8'), isOurs: stats.uid === process.geteuid?.() };
  } catch (error) {
    const code = codeOf(error);
    // A link, or a socket.
    if (isMissing(error) || code === 'ELOOP' || code === 'ENXIO') return null;
    throw error;
  }
}
