/**
 * The thread of `page-check.ts`: reads files from start to end, judges the pages of those that hold some, and sums up what
 * it reads.
 *
 * It reads synchronously: a thread has nobody else to serve, and what has just arrived lies in memory still.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { crc32c } from '@node-rs/crc32';
import type { CheckedFile, FileToCheck, PageCheckerOptions, Suspect } from './page-check.ts';
import { judgePage } from './page-checksum.ts';

/** A whole number of pages of any size that PostgreSQL knows, and small enough to stay in the cache of a processor. */
const READ_BYTES = 256 * 1024;

const { pageBytes, judgesPages, sums } = workerData as PageCheckerOptions;
const buffer = Buffer.from(new ArrayBuffer(READ_BYTES));
const words = new Int32Array(buffer.buffer);

parentPort?.on('message', (files: readonly FileToCheck[]) => {
  let current = '';
  try {
    const checked = files.map((file) => {
      current = file.path;
      return check(file);
    });
    parentPort?.postMessage({ checked });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const path = Buffer.from(current, 'latin1').toString();
    parentPort?.postMessage({ failure: { path, reason: code ?? message } });
  }
});

function check({ path, firstBlock }: FileToCheck): CheckedFile | null {
  let file: number;
  try {
    file = openSync(Buffer.from(path, 'latin1'), 'r');
  } catch (error) {
    // It was gone on the source before it could be sent.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  try {
    const suspects: Suspect[] = [];
    let bytes = 0;
    let crc = 0;
    let pages = 0;
    for (;;) {
      const filled = fill(file);
      if (filled === 0) break;
      if (sums) crc = crc32c(buffer.subarray(0, filled), crc);
      // What does not fill a page is none: the server does not see it, and replay makes it whole (R1.16).
      const whole = judgesPages && firstBlock !== null ? Math.floor(filled / pageBytes) : 0;
      for (let page = 0; page < whole; page += 1) {
        const block = (firstBlock ?? 0) + bytes / pageBytes + page;
        const at = (page * pageBytes) / 4;
        const { isSound, lsn } = judgePage(words, { at, pageBytes, block });
        if (!isSound) suspects.push({ block, lsn });
      }
      pages += whole;
      bytes += filled;
      if (filled < READ_BYTES) break;
    }
    const { mtimeNs } = fstatSync(file, { bigint: true });
    return { bytes, mtimeNs, crc, pages, suspects };
  } finally {
    closeSync(file);
  }
}

/** A read may bring less than there is. @returns How much came before the end of the file. */
function fill(file: number): number {
  let filled = 0;
  while (filled < READ_BYTES) {
    const read = readSync(file, buffer, filled, READ_BYTES - filled, null);
    if (read === 0) break;
    filled += read;
  }
  return filled;
}
