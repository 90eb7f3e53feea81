/**
 * What a directory takes of its filesystem: bytes that are its own, and bytes that it shares with whatever else.
 *
 * Told by the maps of the files' extents (FIEMAP), which `filefrag` prints. What is shared becomes one's own when the others
 * have overwritten or removed theirs, so this is true of one moment.
 */
import { CloneError } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import { filesBelow } from './files-below.ts';

/** Well below what the kernel takes as arguments, even if each has 4 kB. */
const FILES_PER_CALL_MAX = 400;

/** `  0:        0..    8191: 2324463616..2324471807:   8192:             last,shared,eof`, in units of `-b`. */
const EXTENT = /^ *\d+: +\d+\.\. *\d+: +\d+\.\. *\d+: +(\d+): +(?:\d+:)? *(\S*)$/;

const UNSUPPORTED = /FIBMAP requires root privileges|FIBMAP\/FIEMAP unsupported/;

export interface Space {
  readonly ownBytes: number;
  readonly sharedBytes: number;
}

/**
 * Measures what lies below the directories; links are not followed, and what vanishes meanwhile is left out.
 *
 * @returns Null if the filesystem does not tell, or `filefrag` is not installed.
 * @throws The signal's reason if it aborts.
 */
export async function measureSpace(
  directories: readonly string[],
  { signal }: { readonly signal: AbortSignal },
): Promise<Space | null> {
  let [ownBytes, sharedBytes] = [0, 0];
  const measure = async (files: readonly string[]) => {
    const { stderr } = await runProcess(
      {
        file: 'filefrag',
        // Where something will be written has no length until it is: what is still in memory is written first.
        args: ['-b1', '-v', '-s', '--', ...files],
        // Where it lies is not on everybody's path.
        env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' },
      },
      {
        signal,
        // It fails if one of the files has just been removed.
        accept: 'any',
        onLine: (line) => {
          const [, bytes, flags = ''] = EXTENT.exec(line) ?? [];
          if (bytes === undefined) return;
          if (flags.split(',').includes('shared')) sharedBytes += Number(bytes);
          else ownBytes += Number(bytes);
        },
      },
    );
    return !UNSUPPORTED.test(stderr);
  };

  try {
    let files: string[] = [];
    for (const directory of directories) {
      for await (const file of filesBelow(directory)) {
        files.push(file);
        if (files.length < FILES_PER_CALL_MAX) continue;
        if (!(await measure(files))) return null;
        files = [];
      }
    }
    if (files.length > 0 && !(await measure(files))) return null;
  } catch (error) {
    if (error instanceof CloneError && error.code === 'TOOL_MISSING') return null;
    throw error;
  }
  return { ownBytes, sharedBytes };
}
