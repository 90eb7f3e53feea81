/**
 * Watches the filesystem that WAL arrives on.
 *
 * The stream cannot pause: what does not arrive here piles up on the source. So a filesystem that runs out of space ends
 * the clone, in order and while there still is some: others may use it too, and pg_receivewal needs room to end.
 */
import { CloneError, formatBytes } from '@pgcloned/contract';
import { type Repetition, repeat } from '../repeat.ts';
import { type Filesystem, filesystemOf, freeBytesOn } from './space.ts';

export interface WalSpaceWatch extends Repetition {
  /** Settles with `TARGET_NO_SPACE` when half of the reserve is used up; else never. */
  readonly lost: Promise<CloneError>;
}

export async function watchWalSpace({
  directory,
  walSegmentBytes,
  warn,
}: {
  readonly directory: string;
  readonly walSegmentBytes: number;
  /** Told when the reserve is touched. */
  readonly warn: (text: string) => void;
}): Promise<WalSpaceWatch> {
  const filesystem = await filesystemOf(directory, walSegmentBytes);
  const { path, reserveBytes } = filesystem;
  const leastBytes = reserveBytes / 2;
  const { promise: lost, resolve: resolveLost } = Promise.withResolvers<CloneError>();
  let hasWarned = false;
  let { freeBytes } = filesystem;
  const { stop } = repeat(
    () => untilNextLookMs(freeBytes - leastBytes),
    async () => {
      freeBytes = await freeBytesOn(filesystem);
      if (freeBytes < leastBytes) resolveLost(tooFull(directory, filesystem, freeBytes));
      else if (freeBytes < reserveBytes && !hasWarned) {
        hasWarned = true;
        warn(
          `free space for WAL on ${path} runs low: ${formatBytes(freeBytes)} left, and the clone ends at ${formatBytes(leastBytes)}`,
        );
      }
    },
    // It is looked at again at once; a filesystem that is gone fails its writers.
    () => {},
  );
  return { lost, stop };
}

/** As fast as disks get: what they cannot use up before the next look need not be looked at. */
const BYTES_PER_MS_MAX = 2_000_000;
const LOOK_MS_MIN = 25;
const LOOK_MS_MAX = 1_000;

/** @param leftBytes Until something has to happen. */
export function untilNextLookMs(leftBytes: number): number {
  return Math.min(LOOK_MS_MAX, Math.max(LOOK_MS_MIN, leftBytes / BYTES_PER_MS_MAX));
}

function tooFull(
  directory: string,
  { path, reserveBytes }: Filesystem,
  freeBytes: number,
): CloneError {
  return new CloneError(
    'TARGET_NO_SPACE',
    `there is no space left for WAL on ${path}: ${formatBytes(freeBytes)} left, ${formatBytes(reserveBytes)} kept free`,
    {
      facts: { path, directory, freeBytes, reserveBytes },
      hint: 'Make room there, or choose a target.temporaryWalDirectory on a larger filesystem, then clone into the same directory again: what was copied is kept.',
    },
  );
}
