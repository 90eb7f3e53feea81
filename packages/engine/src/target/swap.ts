/**
 * Putting a clone in the place of what was there (`ifExists: replace`).
 *
 * Every directory is built beside its final place. The swap is a list of renames, written down beside the data directory
 * before the first of them. The clone has no pg_control until all are done (R2.5), so after a crash the state is clear:
 * with the clone's pg_control in place the swap is complete, without it everything is renamed back.
 */
import { rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { quoteForShell, readPlainFile, syncDirectory, writeDurably } from '@pgcloned/process';
import { type Place, swapJournalPath } from './layout.ts';
import { exists, isStartable, type Marker, markerPath, writeMarker } from './marker.ts';

interface SwapJournal {
  readonly cloneId: string;
  /** The data directory first. */
  readonly places: readonly Place[];
}

/** Renames old away and new into place. Call {@link recoverSwap} if anything after it fails before pg_control is in place. */
export async function swapIntoPlace(
  dataDirectory: string,
  { cloneId, places }: SwapJournal,
): Promise<void> {
  await writeDurably(swapJournalPath(dataDirectory), JSON.stringify({ cloneId, places }));
  for (const place of places) {
    if (place.old === null) continue;
    await rename(place.final, place.old);
    await rename(place.build, place.final);
    await moveMarker(place.build, place.final, place, { cloneId, dataDirectory, finished: true });
    await syncDirectory(dirname(place.final));
  }
}

/**
 * Ends what an interrupted swap began: nothing to do if there is none or the clone was published, else all is renamed
 * back, so that the old data directory is what it was.
 *
 * Only under the lock of the data directory.
 */
export async function recoverSwap(dataDirectory: string): Promise<'none' | 'kept' | 'reverted'> {
  const journal = await readJournal(dataDirectory);
  if (journal === null) return 'none';
  const interrupted = await isInterrupted(dataDirectory, journal);
  if (interrupted) {
    for (const place of journal.places.toReversed())
      await putBack(place, journal.cloneId, dataDirectory);
  }
  await rm(swapJournalPath(dataDirectory), { force: true });
  await syncDirectory(dirname(dataDirectory));
  return interrupted ? 'reverted' : 'kept';
}

/** Forgets the journal of a swap whose clone is published. */
export async function endSwap(dataDirectory: string): Promise<void> {
  await rm(swapJournalPath(dataDirectory), { force: true });
  await syncDirectory(dirname(dataDirectory));
}

/**
 * The data directory is the first to move and the last to come back, and what takes its place has no pg_control before it
 * is published. So this is told without the marker, which knows the number of a device that may have another one since
 * the last restart of this host: what is published may run, and is never moved.
 */
async function isInterrupted(dataDirectory: string, { places }: SwapJournal): Promise<boolean> {
  const old = places.find(({ kind }) => kind === 'data')?.old ?? null;
  return old !== null && (await exists(old)) && !(await isStartable(dataDirectory));
}

async function putBack(place: Place, cloneId: string, dataDirectory: string): Promise<void> {
  if (place.old === null || !(await exists(place.old))) return;
  if (await exists(place.final)) {
    await rename(place.final, place.build);
    await moveMarker(place.final, place.build, place, { cloneId, dataDirectory, finished: false });
  }
  await rename(place.old, place.final);
  await syncDirectory(dirname(place.final));
}

/** A marker names the path of its directory, so it is written anew after a rename. */
async function moveMarker(
  from: string,
  to: string,
  { kind }: Place,
  marker: Marker,
): Promise<void> {
  await writeMarker(to, kind, marker);
  if (kind === 'tablespace') await rm(markerPath(from, kind), { force: true });
}

/** It lies where others may write, too, and tells what to rename: that of another user is none. */
async function readJournal(dataDirectory: string): Promise<SwapJournal | null> {
  const path = swapJournalPath(dataDirectory);
  if (!(await exists(path))) return null;
  const found = await readPlainFile(path);
  if (found?.isOurs === true) return JSON.parse(found.text) as SwapJournal;
  throw new CloneError('TARGET_INVALID', `${path} is not of the user that runs the worker`, {
    facts: { path },
    hint: `Somebody else has put it there: see who may write into ${quoteForShell(dirname(path))}, and remove the file.`,
  });
}
