/**
 * The work of a copy, cut into batches that workers pull.
 *
 * Largest files first, so that no worker ends with one big file while the others idle. A batch is a worker's share of what
 * is left: big at the start, because each costs an rsync process and a login, and small at the end, so that all workers
 * end together. Its size is bounded, because a lost connection costs one batch.
 */
import type { ByteName } from '@pgcloned/rsync';
import { bytesOf, type SelectedFile } from './select.ts';

export interface Batch {
  /** Index of the root (PGDATA or a tablespace) that all its files lie in. */
  readonly root: number;
  readonly names: readonly ByteName[];
  readonly bytes: number;
}

/** PostgreSQL cuts relations into segments of 1 GB: a batch is at least one file, whatever its size. */
const BATCH_BYTES_MAX = 1024 ** 3;
/** Some 0.1 s of transfer at loopback speed: below that, starting rsync costs more than it balances. */
const BATCH_BYTES_MIN = 64 * 1024 ** 2;
const BATCH_FILES_MAX = 10_000;
const BATCH_FILES_MIN = 500;

/** Smaller ones tell how fast files are opened, and not how fast they travel. */
const SAMPLE_FILE_BYTES_MIN = 128 * 1024;
/** Of what was asked for; less tells nothing. */
const SAMPLE_SHARE_MIN = 1 / 4;

export interface BatchQueue {
  /**
   * The next batch, or null if nothing is left.
   *
   * @param bytesMax Larger than that is a single file at most. Default: 1 GB.
   */
  readonly next: (bytesMax?: number) => Batch | null;
  /** Cuts one that it has given out into so many, or as many as it has files, of about the same size. */
  readonly split: (batch: Batch, parts: number) => readonly Batch[];
  /**
   * Files of middling size, of so many bytes at most: enough to tell by how fast they travel. Null: there are too few.
   *
   * @param isWanted Whether they may be of this root.
   */
  readonly sample: (bytesMax: number, isWanted: (root: number) => boolean) => Batch | null;
  readonly bytesTotal: number;
  readonly filesTotal: number;
}

export function queueBatches(
  roots: readonly (readonly SelectedFile[])[],
  { workers }: { readonly workers: () => number },
): BatchQueue {
  const queues = roots.map((files) => ({
    files: files.toSorted((left, right) => right.bytes - left.bytes),
    position: 0,
  }));
  const all = roots.flat();
  const bytesTotal = bytesOf(all);
  let bytesLeft = bytesTotal;
  let filesLeft = all.length;

  const largestHead = (): number | null => {
    let found: { readonly root: number; readonly bytes: number } | null = null;
    for (const [root, { files, position }] of queues.entries()) {
      const head = files[position];
      if (head !== undefined && (found === null || head.bytes > found.bytes))
        found = { root, bytes: head.bytes };
    }
    return found?.root ?? null;
  };

  return {
    bytesTotal,
    filesTotal: all.length,
    next(bytesMax = BATCH_BYTES_MAX) {
      const root = largestHead();
      const queue = root === null ? undefined : queues[root];
      if (root === null || queue === undefined) return null;
      const most = Math.min(bytesMax, BATCH_BYTES_MAX);
      const bytesWanted = clamp(bytesLeft / workers(), BATCH_BYTES_MIN, most);
      const filesWanted = clamp(filesLeft / workers(), BATCH_FILES_MIN, BATCH_FILES_MAX);
      const names: ByteName[] = [];
      let bytes = 0;
      for (;;) {
        const file = queue.files[queue.position];
        if (file === undefined || names.length >= filesWanted) break;
        if (names.length > 0 && bytes + file.bytes > bytesWanted) break;
        names.push(file.name);
        bytes += file.bytes;
        queue.position += 1;
      }
      bytesLeft -= bytes;
      filesLeft -= names.length;
      return { root, names, bytes };
    },
    split({ root, names }, parts) {
      const sizes = new Map(roots[root]?.map(({ name, bytes }) => [name, bytes]));
      const shares = Array.from({ length: Math.min(parts, names.length) }, () => ({
        names: [] as ByteName[],
        bytes: 0,
      }));
      // Largest first, as they are: each in turn gets the next largest.
      for (const [index, name] of names.entries()) {
        const share = shares[index % shares.length];
        if (share === undefined) continue;
        share.names.push(name);
        share.bytes += sizes.get(name) ?? 0;
      }
      return shares.map((share) => ({ root, ...share }));
    },
    sample(bytesMax, isWanted) {
      for (const [root, { files, position }] of queues.entries()) {
        if (!isWanted(root)) continue;
        const first = files.findIndex((file, index) => index >= position && file.bytes <= bytesMax);
        if (first === -1) continue;
        let bytes = 0;
        let end = first;
        for (; end < files.length && end - first < BATCH_FILES_MAX; end += 1) {
          const fileBytes = files[end]?.bytes ?? 0;
          if (fileBytes < SAMPLE_FILE_BYTES_MIN || bytes + fileBytes > bytesMax) break;
          bytes += fileBytes;
        }
        if (bytes < bytesMax * SAMPLE_SHARE_MIN) continue;
        const names = files.splice(first, end - first).map(({ name }) => name);
        bytesLeft -= bytes;
        filesLeft -= names.length;
        return { root, names, bytes };
      }
      return null;
    },
  };
}

function clamp(value: number, min: number, max: number): number {
  return Math.min(max, Math.max(min, value));
}
