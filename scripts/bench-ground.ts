/**
 * What every contestant of a benchmark finds alike, whoever came before it.
 *
 * Nothing is removed before the end: ext4 searches long for inodes that were not deleted within the last minutes, which
 * makes whoever creates thousands of files after a removal up to twice as slow. And memory is touched just before: a
 * virtual machine gives back to its host what lay idle, and whoever needs it next waits for every page of it.
 */
import { execFile } from 'node:child_process';
import { statfs } from 'node:fs/promises';
import { freemem } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { runAsPartsUser } from '@pgcloned/testbed';

/** A clone with its source's page cache and its WAL. */
const MEMORY_PER_CLUSTER = 2.2;
const DISK_PER_CLUSTER = 1.3;
const GIGABYTE = 1e9;

const TOUCH =
  'for (const all = []; all.length < Number(process.argv[1]);) all.push(Buffer.alloc(2 ** 28, 1));';

let targets = 0;

/** A path that nothing had before, on an idle disk. */
export async function freshTarget(directory: string, gigabytes: number): Promise<string> {
  const { bavail, bsize } = await statfs(directory);
  if (bavail * bsize < DISK_PER_CLUSTER * gigabytes * GIGABYTE)
    throw new Error(
      `${directory} has no room for another ${String(gigabytes)} GB: take less with --gigabytes or --rounds`,
    );
  await runAsPartsUser(['sync']);
  const touchedBytes = Math.min(MEMORY_PER_CLUSTER * gigabytes * GIGABYTE, freemem() / 2);
  await promisify(execFile)(process.execPath, ['--eval', TOUCH, String(touchedBytes / 2 ** 28)]);
  targets += 1;
  return join(directory, `target-${String(targets)}`);
}
