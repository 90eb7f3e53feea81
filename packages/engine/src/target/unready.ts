/**
 * A clone in which the files of `onReady` have not run must not be seen by anybody, also if we are killed while they do.
 *
 * A server needs pg_control, so it is in place by then. What keeps another server from starting is a setting: the file that
 * it names does not exist, and the name says why. Only a private server of ours, which brings an `hba_file` of its own, does
 * not mind.
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { withoutSettings } from '@pgcloned/postgres';
import { ifMissing, syncDirectory } from '@pgcloned/process';

export const NOT_READY: Readonly<Record<string, string>> = {
  hba_file: 'pgcloned: the onReady files of the source have not run in this clone',
};

/** @throws What the system says if the settings are there and cannot be read. */
export async function isUnready(dataDirectory: string): Promise<boolean> {
  const text = await readFile(join(dataDirectory, 'postgresql.auto.conf'), 'utf8').catch(
    ifMissing(''),
  );
  return withoutSettings(text, NOT_READY) !== text;
}

/**
 * Makes an unfinished copy of it for good; the next clone of the same target makes room for itself there. Whoever calls holds
 * the lock on the data directory, and no server runs there.
 */
export async function withdraw(dataDirectory: string): Promise<void> {
  const directory = join(dataDirectory, 'global');
  await rm(join(directory, 'pg_control'), { force: true });
  await syncDirectory(directory);
}
