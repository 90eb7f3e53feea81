/**
 * What has to be done to bring a directory that holds an earlier copy to what the source has now: what is kept, what is
 * sent, and what goes (R6.9, R6.10).
 *
 * A file is kept only if the journal vouches for it and nobody touched it here. One of which most is here is sent as a
 * delta; everything else is sent whole. What the source does not have goes, before anything is sent: a stale segment of
 * a relation would come back as ghost rows without a word.
 */
import { lstat, readdir, rm, utimes } from 'node:fs/promises';
import type { ByteName, SourceEntry } from '@pgcloned/rsync';
import { bytePath } from './directories.ts';
import type { SelectedFile, Selection } from './select.ts';

/** Below this a delta saves less than comparing costs. */
const DELTA_BYTES_MIN = 256 * 1024;

export interface LocalEntry {
  readonly type: 'file' | 'directory' | 'other';
  readonly bytes: number;
  readonly mtimeNs: bigint;
}

export interface Reconciliation {
  /** Here already. */
  readonly kept: readonly SelectedFile[];
  /** Mostly here: only the difference is sent. */
  readonly delta: readonly SelectedFile[];
  readonly whole: readonly SelectedFile[];
  /**
   * Removed before anything is sent, directories with all they hold: what the source does not have, and what is sent
   * whole, so that a batch that broke off can be told from what lay there before.
   */
  readonly obsolete: readonly ByteName[];
}

export function reconcile({
  selection,
  entries,
  local,
  isVouched,
  isSpared,
}: {
  readonly selection: Selection;
  /** What the source has, by name. */
  readonly entries: ReadonlyMap<ByteName, SourceEntry>;
  readonly local: ReadonlyMap<ByteName, LocalEntry>;
  readonly isVouched: (entry: SourceEntry) => boolean;
  /** Whether a name is not the copy's to remove: it is ours, or of a tablespace inside. */
  readonly isSpared: (name: ByteName) => boolean;
}): Reconciliation {
  const kept: SelectedFile[] = [];
  const delta: SelectedFile[] = [];
  const whole: SelectedFile[] = [];
  const obsolete = [...strangersIn(local, selection, isSpared)];
  for (const file of selection.files) {
    const here = local.get(file.name);
    const there = entries.get(file.name);
    if (here?.type !== 'file' || there === undefined) {
      whole.push(file);
      continue;
    }
    // The time of the listing is given to a file when it is complete (R6.8), see `markIncomplete`.
    const isUntouched = here.bytes === there.bytes && here.mtimeNs === there.mtimeNs;
    if (isUntouched && isVouched(there)) kept.push(file);
    else if (file.bytes >= DELTA_BYTES_MIN && here.bytes * 2 >= file.bytes) delta.push(file);
    else {
      whole.push(file);
      obsolete.push(file.name);
    }
  }
  return { kept, delta, whole, obsolete };
}

function strangersIn(
  local: ReadonlyMap<ByteName, LocalEntry>,
  selection: Selection,
  isSpared: (name: ByteName) => boolean,
): readonly ByteName[] {
  const files = new Set(selection.files.map(({ name }) => name));
  const directories = new Set(selection.directories);
  const strangers: ByteName[] = [];
  for (const [name, { type }] of local) {
    const isKnown =
      type === 'file' ? files.has(name) : type === 'directory' && directories.has(name);
    if (!isKnown && !isSpared(name)) strangers.push(name);
  }
  return strangers;
}

/** What the files below `root` take up, by their sizes. */
export async function bytesIn(root: string): Promise<number> {
  const local = await listLocal(root);
  return [...local.values()].reduce((sum, { bytes }) => sum + bytes, 0);
}

/** Of the filesystem, where `root` is a mount point: root alone may look into it. */
const LOST_AND_FOUND = 'lost+found';

/** Everything below `root` but `lost+found`, by name; nothing if it does not exist. Links are not followed. */
export async function listLocal(root: string): Promise<ReadonlyMap<ByteName, LocalEntry>> {
  const found = new Map<ByteName, LocalEntry>();
  const visit = async (directory: ByteName): Promise<void> => {
    const names = await readdir(bytePath(root, directory), 'latin1').catch((error: unknown) => {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    });
    for (const base of names) {
      const name = directory === '' ? base : `${directory}/${base}`;
      if (name === LOST_AND_FOUND) continue;
      const stats = await lstat(bytePath(root, name), { bigint: true });
      const type = stats.isFile() ? 'file' : stats.isDirectory() ? 'directory' : 'other';
      found.set(name, { type, bytes: Number(stats.size), mtimeNs: stats.mtimeNs });
      if (type === 'directory') await visit(name);
    }
  };
  await visit('');
  return found;
}

/**
 * Takes away the time of files that are about to be sent as a delta: rsync gives a file the time of the listing when it is
 * complete, so the time alone tells a complete file from one that was left in the middle.
 */
export async function markIncomplete(root: string, files: readonly SelectedFile[]): Promise<void> {
  for (const { name } of files) await utimes(bytePath(root, name), 0, 0);
}

export async function removeAll(root: string, names: readonly ByteName[]): Promise<void> {
  for (const name of names) await rm(bytePath(root, name), { recursive: true, force: true });
}
