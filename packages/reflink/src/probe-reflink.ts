/**
 * Whether files of two directories can share blocks, found out by doing it (R10.3): what filesystems say of themselves
 * does not tell.
 */
import { randomUUID } from 'node:crypto';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { explainFailure } from './failure.ts';
import { filesBelow } from './files-below.ts';
import { reflinkFile } from './reflink-file.ts';

/** An extent of its own on every filesystem: btrfs keeps smaller files among its metadata. */
const PROBE_BYTES = 64 * 1024;

const { signal } = new AbortController();

/**
 * Clones one file of `fromDirectory` into `toDirectory` and removes it. Writes nothing into `fromDirectory`, unless it is
 * `toDirectory`; if there is no file in it, none is to be cloned, and what is probed is `toDirectory` alone.
 *
 * @param toDirectory Must exist: that which the clone's directory will be made in, if it does not yet.
 * @throws {CloneError} `REFLINK_UNSUPPORTED` with both filesystems and what to do, `TARGET_NO_SPACE`, `TARGET_NOT_WRITABLE`.
 */
export async function probeReflink(fromDirectory: string, toDirectory: string): Promise<void> {
  const probe = join(toDirectory, `.pgcloned-probe-${randomUUID()}`);
  const written = `${probe}-source`;
  try {
    if (fromDirectory !== toDirectory) {
      for await (const from of filesBelow(fromDirectory)) {
        const { how } = await reflinkFile({ from, to: probe }, { fallback: 'fail', signal });
        if (how === 'shared') return;
      }
    }
    try {
      await writeFile(written, Buffer.alloc(PROBE_BYTES, 1), { flag: 'wx' });
    } catch (error) {
      throw await explainFailure(error, { from: fromDirectory, to: written });
    }
    await reflinkFile({ from: written, to: probe }, { fallback: 'fail', signal });
  } finally {
    await rm(probe, { force: true });
    await rm(written, { force: true });
  }
}
