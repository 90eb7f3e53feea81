/** A filesystem that is mounted inside a directory is none of that directory's files, and is not removed with them (R11.5). */
import { readFile } from 'node:fs/promises';
import { CloneError } from '@pgcloned/contract';
import { isWithin, quoteForShell } from '@pgcloned/process';

/** Of the filesystem, where a directory is a mount point: root alone may look into it, and it counts as nothing. */
export const LOST_AND_FOUND = 'lost+found';

/**
 * @param counts Whether what is mounted on a path below the directory is in the way. Default: always.
 * @throws {CloneError} `REMOVAL_FAILED` for the first one; what is mounted on the directory itself does not count.
 */
export async function refuseMountsBelow(
  directory: string,
  counts: (path: string) => boolean = () => true,
): Promise<void> {
  const table = await readFile('/proc/self/mountinfo', 'latin1');
  const mounted = table
    .split('\n')
    .map((line) => unescaped(line.split(' ')[4] ?? ''))
    .find((path) => path !== directory && isWithin(path, directory) && counts(path));
  if (mounted === undefined) return;
  throw new CloneError('REMOVAL_FAILED', `something is mounted on ${mounted}`, {
    facts: { directory, path: mounted },
    hint: `It would be removed with ${directory}: umount ${quoteForShell(mounted)} first, as root.`,
  });
}

/** The kernel writes blanks and the like in octal, and names as the bytes that they are. */
function unescaped(path: string): string {
  const bytes = path.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
  return Buffer.from(bytes, 'latin1').toString('utf8');
}
