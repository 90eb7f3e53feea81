/**
 * What has to be done to bring a directory that holds an earlier copy to what the source has now: what is kept, what is
 * sent, and what goes (R6.9, R6.10).
 *
 * A file is kept only if it is ours alone, the journal vouches for it and nobody touched it here. Of any other that is
 * ours alone only the difference is sent. What the source does not have goes, before anything is sent: a stale segment of a
 * relation would come back as ghost rows without a word.
 */
import { chmod, lstat, readdir, rm, utimes } from 'node:fs/promises';
import { ifMissing, isWithin } from '@pgcloned/process';
import type { ByteName, SourceEntry } from '@pgcloned/rsync';
import { LOST_AND_FOUND, refuseMountsBelow } from '../target/mounts.ts';
import { bytePath } from './directories.ts';
import { bytesOf, type SelectedFile, type Selection } from './select.ts';

/** Looking for so much in what is here takes the source longer than starting another rsync. */
const REST_BYTES_MIN = 2 * 1024 ** 2;

export interface LocalEntry {
  readonly type: 'file' | 'directory' | 'other';
  readonly bytes: number;
  readonly mtimeNs: bigint;
  /** Permission bits. */
  readonly mode: number;
  /** Of no other user, and without another name: a snapshot made of links must not change with it. */
  readonly isOursAlone: boolean;
}

export interface Reconciliation {
  /** Here already. */
  readonly kept: readonly SelectedFile[];
  /** Here, but maybe not the same: only the difference is sent. */
  readonly delta: readonly SelectedFile[];
  readonly whole: readonly SelectedFile[];
  /** Removed before anything is sent, directories with all they hold: what the source does not have, what is not ours. */
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
    // The time of the listing is given to a file when it is complete (R6.8), see `markIncomplete`; after it the mode, so
    // that an rsync that is killed in between leaves the one without the other.
    const isUntouched =
      here.bytes === there.bytes && here.mtimeNs === there.mtimeNs && here.mode === there.mode;
    // The server would write into it as well.
    if (!here.isOursAlone) {
      whole.push(file);
      obsolete.push(file.name);
    } else if (isUntouched && isVouched(there)) kept.push(file);
    else delta.push(file);
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
  return bytesOf([...local.values()]);
}

/** Everything below `root` but `lost+found`, by name; nothing if it does not exist. Links are not followed. */
export async function listLocal(root: string): Promise<ReadonlyMap<ByteName, LocalEntry>> {
  const found = new Map<ByteName, LocalEntry>();
  const visit = async (directory: ByteName): Promise<void> => {
    const names = await readdir(bytePath(root, directory), 'latin1').catch(ifMissing([]));
    for (const base of names) {
      const name = directory === '' ? base : `${directory}/${base}`;
      if (name === LOST_AND_FOUND) continue;
      const stats = await lstat(bytePath(root, name), { bigint: true });
      const type = stats.isFile() ? 'file' : stats.isDirectory() ? 'directory' : 'other';
      const isOursAlone = stats.nlink === 1n && stats.uid === BigInt(process.getuid?.() ?? -1);
      found.set(name, {
        ...{ type, isOursAlone, bytes: Number(stats.size), mtimeNs: stats.mtimeNs },
        mode: Number(stats.mode & 0o7777n),
      });
      if (type === 'directory') await visit(name);
    }
  };
  await visit('');
  return found;
}

/**
 * Takes away the time of files that are about to be sent as a delta: rsync gives a file the time of the listing when it is
 * complete, so the time alone tells a complete file from one that was left in the middle. Its mode it gives back as well,
 * and writes into no file that its owner may not write.
 */
export async function markIncomplete(
  root: string,
  files: readonly SelectedFile[],
  entries: ReadonlyMap<ByteName, SourceEntry>,
): Promise<void> {
  for (const { name } of files) {
    const path = bytePath(root, name);
    await chmod(path, 0o600);
    // A tool that restored the source may have set all times to 0.
    await utimes(path, 0, entries.get(name)?.mtimeNs === 0n ? 1 : 0);
  }
}

/** The files that were begun here but whose end is missing: they have grown, or a transfer broke off in the middle. */
export async function listShort(
  root: string,
  entries: readonly SourceEntry[],
): Promise<readonly ByteName[]> {
  const short: ByteName[] = [];
  for (const { name, bytes } of entries) {
    if (bytes < REST_BYTES_MIN) continue;
    const stats = await lstat(bytePath(root, name)).catch(ifMissing(null));
    if (stats !== null && bytes - stats.size >= REST_BYTES_MIN) short.push(name);
  }
  return short;
}

/** @throws {CloneError} `REMOVAL_FAILED` if something is mounted there; then nothing was removed. */
export async function removeAll(root: string, names: readonly ByteName[]): Promise<void> {
  const paths = names.map((name) => bytePath(root, name).toString());
  await refuseMountsBelow(root, (mounted) => paths.some((path) => isWithin(mounted, path)));
  for (const name of names) await rm(bytePath(root, name), { recursive: true, force: true });
}
