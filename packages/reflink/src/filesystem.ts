/** Which filesystem a path lies on, as the kernel's list of mounts has it. */
import { readFile, realpath } from 'node:fs/promises';

export interface MountedFilesystem {
  /** `xfs`, `btrfs`, `ext4`, … */
  readonly type: string;
  readonly mountPoint: string;
}

/** @param path Of something that exists. */
export async function filesystemOf(path: string): Promise<MountedFilesystem> {
  const real = await realpath(path);
  let found: MountedFilesystem = { type: 'unknown', mountPoint: '/' };
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const [left = '', right = ''] = line.split(' - ');
    const mountPoint = unescapeMount(left.split(' ')[4] ?? '');
    const isAbove =
      real === mountPoint ||
      real.startsWith(mountPoint.endsWith('/') ? mountPoint : `${mountPoint}/`);
    // Of two mounts on one directory the later one hides the earlier.
    if (mountPoint !== '' && isAbove && mountPoint.length >= found.mountPoint.length)
      found = { type: right.split(' ')[0] ?? 'unknown', mountPoint };
  }
  return found;
}

/** Blanks and the like stand there in octal. */
const unescapeMount = (text: string) =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
