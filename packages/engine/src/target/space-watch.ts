/**
 * Watches filesystems that a clone writes and cannot pause on.
 *
 * WAL streams on, since what does not arrive here piles up on the source; a server that replays or runs `onReady` takes the
 * room it needs; and reflinks lie on the filesystem that the source itself writes. So one that runs out of space ends the
 * clone, in order and while there still is some: others use it too.
 */
import { CloneError, formatBytes } from '@pgcloned/contract';
import type { CloneRun } from '../clone-run.ts';
import { type Repetition, repeat } from '../repeat.ts';
import { type Filesystem, filesystemOf, freeBytesOn } from './space.ts';

export interface SpaceWatchOptions {
  readonly directories: readonly string[];
  readonly walSegmentBytes: number;
  /** What the space is for, as messages say it. */
  readonly use: 'WAL' | 'the clone';
  readonly hint: string;
}

export interface SpaceWatch extends Repetition {
  /** Settles with `TARGET_NO_SPACE` when half of a reserve is used up; else never. */
  readonly lost: Promise<CloneError>;
}

/** Ends the run with that error; until it is stopped, which the cleanup of the run does at the latest. */
export async function watchSpace(
  run: Pick<CloneRun, 'watch' | 'cleanup' | 'observer'>,
  options: SpaceWatchOptions,
): Promise<SpaceWatch> {
  const { lost, stop: stopLooking } = await look(options, (text) => {
    run.observer.log('warn', text);
  });
  const unwatch = run.watch(lost);
  const stop = async () => {
    unwatch();
    await stopLooking();
  };
  run.cleanup.always({
    what: `watch over the space for ${options.use}`,
    remedy: `kill ${String(process.pid)}`,
    undo: stop,
  });
  return { lost, stop };
}

async function look(
  options: SpaceWatchOptions,
  /** Told when a reserve is touched. */
  warn: (text: string) => void,
): Promise<SpaceWatch> {
  const { use } = options;
  const filesystems = new Map<number, Filesystem>();
  for (const directory of options.directories) {
    const filesystem = await filesystemOf(directory, options.walSegmentBytes);
    filesystems.set(filesystem.device, filesystem);
  }
  const { promise: lost, resolve: resolveLost } = Promise.withResolvers<CloneError>();
  const warned = new Set<Filesystem>();
  let leftBytes = 0;
  const lookAtAll = async () => {
    let leastLeftBytes = Number.POSITIVE_INFINITY;
    for (const filesystem of filesystems.values()) {
      const { path, reserveBytes } = filesystem;
      const leastBytes = reserveBytes / 2;
      const freeBytes = await freeBytesOn(filesystem);
      leastLeftBytes = Math.min(leastLeftBytes, freeBytes - leastBytes);
      if (freeBytes < leastBytes) resolveLost(tooFull(filesystem, freeBytes, options));
      else if (freeBytes < reserveBytes && !warned.has(filesystem)) {
        warned.add(filesystem);
        warn(
          `free space for ${use} on ${path} runs low: ${formatBytes(freeBytes)} left, and the clone ends at ${formatBytes(leastBytes)}`,
        );
      }
    }
    leftBytes = leastLeftBytes;
  };
  await lookAtAll();
  const { stop } = repeat(
    () => untilNextLookMs(leftBytes),
    lookAtAll,
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
  { path, reserveBytes }: Filesystem,
  freeBytes: number,
  { use, hint }: SpaceWatchOptions,
): CloneError {
  return new CloneError(
    'TARGET_NO_SPACE',
    `there is no space left for ${use} on ${path}: ${formatBytes(freeBytes)} left, ${formatBytes(reserveBytes)} kept free`,
    { facts: { path, freeBytes, reserveBytes }, hint },
  );
}
