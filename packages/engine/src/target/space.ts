/** Whether what is to be written fits, by filesystem: several directories may share one. */
import { stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CloneError, formatBytes } from '@pgcloned/contract';

export interface SpaceNeed {
  readonly path: string;
  readonly bytes: number;
}

/** @throws {CloneError} `TARGET_NO_SPACE`, naming the filesystem, what is free and what is needed. */
export async function refuseIfTooLarge(needs: readonly SpaceNeed[]): Promise<void> {
  const byFilesystem = new Map<number, { path: string; bytes: number }>();
  for (const { path, bytes } of needs) {
    const existing = await deepestExisting(path);
    const { dev } = await stat(existing);
    const sum = byFilesystem.get(dev) ?? { path: existing, bytes: 0 };
    byFilesystem.set(dev, { path: sum.path, bytes: sum.bytes + bytes });
  }
  for (const { path, bytes } of byFilesystem.values()) {
    const { bavail, bsize } = await statfs(path);
    const freeBytes = bavail * bsize;
    if (freeBytes >= bytes) continue;
    throw new CloneError(
      'TARGET_NO_SPACE',
      `the filesystem of ${path} has ${formatBytes(freeBytes)} free, and ${formatBytes(bytes)} are needed`,
      {
        facts: { path, freeBytes, neededBytes: bytes },
        hint: 'Make room there, or choose a target on a larger filesystem.',
      },
    );
  }
}

async function deepestExisting(path: string): Promise<string> {
  for (let existing = path; existing !== '/'; existing = dirname(existing)) {
    if ((await stat(existing).catch(() => null)) !== null) return existing;
  }
  return '/';
}
