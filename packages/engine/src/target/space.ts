/**
 * How much room there is, by filesystem: several directories may share one, and so may other clusters.
 *
 * A clone leaves a reserve free on each filesystem that it writes, so that it fills none: it is not begun where it would
 * have to use it, it pauses while it runs (`copy/space-gate.ts`), and what cannot pause ends it in time
 * (`space-watch.ts`).
 */
import { stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CloneError, formatBytes } from '@pgcloned/contract';

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

/** Where `path` is, or the directory that it will be made in. */
export async function deepestExisting(path: string): Promise<string> {
  for (let existing = path; existing !== '/'; existing = dirname(existing)) {
    if ((await stat(existing).catch(() => null)) !== null) return existing;
  }
  return '/';
}
