/**
 * How much room there is, by filesystem: several directories may share one, and so may other clusters.
 *
 * A clone leaves a reserve free on each filesystem that it writes, so that it fills none: it is not begun where it would
 * have to use it, it pauses while it runs (`copy/space-gate.ts`), and what cannot pause ends it in time
 * (`space-watch.ts`).
 */
import { stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CloneError, type ErrorCode, formatBytes } from '@pgcloned/contract';
import { isDiskFull } from '@pgcloned/process';

const RESERVE_BYTES_MAX = 1024 ** 3;
const RESERVE_SHARE = 0.05;
/** pg_receivewal takes the room of a whole segment when it begins one: that has to fit into half of the reserve. */
const RESERVE_SEGMENTS_MIN = 2.5;

export interface SpaceNeed {
  readonly path: string;
  readonly bytes: number;
}

export interface Filesystem {
  /** Where it is mounted. */
  readonly path: string;
  readonly device: number;
  readonly freeBytes: number;
  /** What a clone leaves free on it. */
  readonly reserveBytes: number;
}

/** The filesystem that `path` lies on, or will lie on. */
export async function filesystemOf(path: string, walSegmentBytes: number): Promise<Filesystem> {
  const existing = await deepestExisting(path);
  const { dev: device } = await stat(existing);
  let mountPoint = existing;
  for (let above = dirname(mountPoint); above !== mountPoint; above = dirname(mountPoint)) {
    if ((await stat(above)).dev !== device) break;
    mountPoint = above;
  }
  const { bavail, blocks, bsize } = await statfs(existing);
  const reserveBytes = Math.max(
    RESERVE_SEGMENTS_MIN * walSegmentBytes,
    Math.min(RESERVE_BYTES_MAX, Math.round(RESERVE_SHARE * blocks * bsize)),
  );
  return { path: mountPoint, device, freeBytes: bavail * bsize, reserveBytes };
}

/** What we may still write, which is less than what is free where the administrator keeps a part to himself. */
export async function freeBytesOn({ path }: Filesystem): Promise<number> {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize;
}

/** A filesystem that a clone would write, and what it would need there. */
export interface Room extends Omit<Filesystem, 'device'> {
  /** The reserve included. */
  readonly neededBytes: number;
}

export async function roomFor(
  needs: readonly SpaceNeed[],
  walSegmentBytes: number,
): Promise<readonly Room[]> {
  const filesystems = new Map<number, Filesystem & { readonly bytes: number }>();
  for (const { path, bytes } of needs) {
    const filesystem = await filesystemOf(path, walSegmentBytes);
    const sum = bytes + (filesystems.get(filesystem.device)?.bytes ?? 0);
    filesystems.set(filesystem.device, { ...filesystem, bytes: sum });
  }
  return [...filesystems.values()].map(({ path, freeBytes, reserveBytes, bytes }) => ({
    path,
    freeBytes,
    reserveBytes,
    neededBytes: Math.max(0, bytes) + reserveBytes,
  }));
}

/** `TARGET_NO_SPACE` for each that is too small, naming the filesystem, what is free and what is needed. */
export function shortagesIn(rooms: readonly Room[]): readonly CloneError[] {
  return rooms
    .filter(({ freeBytes, neededBytes }) => freeBytes < neededBytes)
    .map(
      ({ path, freeBytes, neededBytes, reserveBytes }) =>
        new CloneError(
          'TARGET_NO_SPACE',
          `the filesystem ${path} has ${formatBytes(freeBytes)} free, and ${formatBytes(neededBytes)} are needed, of which ${formatBytes(reserveBytes)} stay free`,
          {
            facts: {
              path,
              freeBytes,
              neededBytes,
              reserveBytes,
              missingBytes: neededBytes - freeBytes,
            },
            hint: 'Make room there, or choose a target on a larger filesystem.',
          },
        ),
    );
}

/** @throws {CloneError} The first of {@link shortagesIn}. */
export async function refuseIfTooLarge(
  needs: readonly SpaceNeed[],
  walSegmentBytes: number,
): Promise<void> {
  const [shortage] = shortagesIn(await roomFor(needs, walSegmentBytes));
  if (shortage !== undefined) throw shortage;
}

/** What fails because a server on the clone has failed, with its own words among the facts. */
const OF_A_SERVER_HERE: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'REPLICA_START_FAILED',
  'VERIFICATION_FAILED',
  'ON_READY_FAILED',
  'PROCESS_FAILED',
]);

/** In English, which a private server speaks. */
const NO_SPACE = /No space left on device|Disk quota exceeded/;

/** With less a server that somebody else looks after could not even write down why it does not start. */
const LOG_BYTES_MIN = 1024 ** 2;

interface Written {
  /** Of those on several filesystems the fullest counts. */
  readonly directories: readonly string[];
  /** What to do once there is room. */
  readonly next: string;
}

/**
 * What a full filesystem has made fail, as what it is: with the filesystem and what is left there. Any other error as it
 * came, and one that tells this already.
 */
export async function explainFullTarget(error: unknown, o: Written): Promise<unknown> {
  if (!mayBeOfFull(error)) return error;
  try {
    return await explain(error, o);
  } catch {
    // A filesystem that cannot be asked is none that is full.
    return error;
  }
}

function mayBeOfFull(error: unknown): boolean {
  if (!(error instanceof CloneError)) return isDiskFull(error);
  const { code, facts } = error;
  return !('freeBytes' in facts) && (code === 'TARGET_NO_SPACE' || OF_A_SERVER_HERE.has(code));
}

async function explain(error: unknown, { directories, next }: Written): Promise<unknown> {
  if (error instanceof CloneError) {
    const { code, message, facts, hint } = error;
    const full = await fullestOf(directories);
    const { path, freeBytes } = full;
    const options = { facts: { ...facts, ...full }, cause: error };
    const left = `${formatBytes(freeBytes)} left on ${path} now`;
    if (code === 'TARGET_NO_SPACE')
      return new CloneError(code, `${message}: ${left}`, {
        ...options,
        hint: hint ?? toMakeRoom(path, next),
      });
    const words = Object.values(facts).join('\n');
    const isMute = code === 'REPLICA_START_FAILED' && freeBytes < LOG_BYTES_MIN;
    if (!isMute && !NO_SPACE.test(words)) return error;
    return new CloneError('TARGET_NO_SPACE', `${message}, for want of space: ${left}`, {
      ...options,
      hint: toMakeRoom(path, next),
    });
  }
  const { code, path: file } = error as NodeJS.ErrnoException;
  const full = await fullestOf(file === undefined ? directories : [file]);
  const { path, freeBytes } = full;
  return new CloneError(
    'TARGET_NO_SPACE',
    `the target had no space left: ${formatBytes(freeBytes)} on ${path} now`,
    {
      facts: { reason: code ?? null, file: file ?? null, ...full },
      hint: toMakeRoom(path, next),
      cause: error,
    },
  );
}

const toMakeRoom = (path: string, next: string) =>
  `Make room on ${path} (its quotas and inodes count as well, see df -i), then ${next}.`;

async function fullestOf(
  directories: readonly string[],
): Promise<{ readonly path: string; readonly freeBytes: number }> {
  const filesystems = await Promise.all(
    directories.map(async (directory) => await filesystemOf(directory, 0)),
  );
  const [fullest] = filesystems.toSorted((one, other) => one.freeBytes - other.freeBytes);
  if (fullest === undefined) throw new Error('no directory was written');
  return { path: fullest.path, freeBytes: fullest.freeBytes };
}

/** Where `path` is, or the directory that it will be made in. */
export async function deepestExisting(path: string): Promise<string> {
  for (let existing = path; existing !== '/'; existing = dirname(existing)) {
    if ((await stat(existing).catch(() => null)) !== null) return existing;
  }
  return '/';
}
