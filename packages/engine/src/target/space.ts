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

/** A full filesystem that a write of ours has met, as what it is; any other error as it came. */
export function explainFullTarget(error: unknown): unknown {
  const { code, path } = error as NodeJS.ErrnoException;
  if (code !== 'ENOSPC' && code !== 'EDQUOT') return error;
  return new CloneError('TARGET_NO_SPACE', 'the target has no space left', {
    facts: { code, path: path ?? null },
    hint: 'Make room on the filesystem of the target (see df, and df -i for its inodes), or choose a larger one.',
    cause: error,
  });
}

async function deepestExisting(path: string): Promise<string> {
  for (let existing = path; existing !== '/'; existing = dirname(existing)) {
    if ((await stat(existing).catch(() => null)) !== null) return existing;
  }
  return '/';
}
