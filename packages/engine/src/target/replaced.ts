/**
 * What clones have replaced (`ifExists: replace`): an old data directory beside the new one, and the WAL and tablespace
 * directories that belong to it. They go together, and only when nobody can want them back.
 *
 * That its removal has begun stands in the old data directory itself: a marker of the clone that has replaced it, which
 * nothing else writes there. From then on it cannot be started, and what a crash leaves goes with the next call. The data
 * directory goes last.
 */
import { readdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Leftover } from '@pgcloned/contract';
import { ifMissing, quoteForShell } from '@pgcloned/process';
import { makePlace, oldPrefix, type Place } from './layout.ts';
import {
  exists,
  hasControlFile,
  openDirectory,
  readMarker,
  readMarkerOf,
  writeMarker,
} from './marker.ts';
import { refuseMountsBelow } from './mounts.ts';
import { refuseRunningServer, takeControlFileAway } from './old-cluster.ts';
import { removePrepared } from './prepare.ts';

export interface ReplacedSet {
  /** The clone that has replaced it. */
  readonly cloneId: string;
  /** It was a clone itself, `ours`, by the marker that it had in its place, or a cluster that we know nothing of. */
  readonly was: 'ours' | 'foreign';
  readonly removalHasBegun: boolean;
  /** Where the new one lies. */
  readonly dataDirectory: string;
  /** The old data directory last. */
  readonly directories: readonly { readonly kind: Place['kind']; readonly path: string }[];
}

/**
 * @param dataDirectory Where the new one lies. Whoever asks holds its lock.
 * @param parts What belongs to it and lies elsewhere: there what belonged to the old one lies, too.
 */
export async function findReplaced(
  dataDirectory: string,
  parts: readonly Pick<Place, 'kind' | 'final'>[],
): Promise<readonly ReplacedSet[]> {
  const prefix = basename(oldPrefix(dataDirectory));
  const names = await readdir(dirname(dataDirectory)).catch(ifMissing([]));
  const found: ReplacedSet[] = [];
  for (const name of names) {
    if (!name.startsWith(prefix)) continue;
    const path = join(dirname(dataDirectory), name);
    const cloneId = name.slice(prefix.length);
    const directories = new Map<string, { readonly kind: Place['kind']; readonly path: string }>();
    for (const { kind, final } of parts) {
      const { old } = makePlace(kind, final, { cloneId, replaces: true });
      if (old !== null && (await exists(old))) directories.set(old, { kind, path: old });
    }
    // The last, in whatever place the caller has named it.
    directories.delete(path);
    found.push({
      cloneId,
      was: (await wasClone(path, dataDirectory)) ? 'ours' : 'foreign',
      removalHasBegun: (await readMarker(path, 'data'))?.cloneId === cloneId,
      dataDirectory,
      directories: [...directories.values(), { kind: 'data', path }],
    });
  }
  return found;
}

/**
 * @throws {CloneError} `TARGET_IN_USE` if a server runs on it, whose cluster somebody wants back: then nothing is begun.
 * @throws What else stands against it: it can be tried again.
 */
export async function removeReplaced({
  cloneId,
  dataDirectory,
  directories,
}: ReplacedSet): Promise<void> {
  for (const { kind, path } of directories) {
    await refuseMountsBelow(path);
    if (kind === 'data') await refuseRunningServer(path);
  }
  for (const { kind, path } of [...directories].reverse()) {
    await writeMarker(path, kind, { cloneId, dataDirectory, finished: false });
    if (kind === 'data' && (await hasControlFile(path))) await takeControlFileAway(path);
  }
  for (const { kind, path } of directories) await removePrepared({ path, kind, madeFrom: path });
}

export function leftoversOf({ directories }: ReplacedSet): readonly Leftover[] {
  return [...directories].reverse().map(({ path }) => ({
    what: `replaced directory ${path}`,
    remedy: `rm -r ${quoteForShell(path)}`,
  }));
}

/** A marker names the path of its directory: it is still the one that lay there. */
async function wasClone(path: string, dataDirectory: string): Promise<boolean> {
  try {
    await using opened = await openDirectory(path);
    return (await readMarkerOf(opened, dataDirectory, 'data'))?.finished === true;
  } catch {
    // Whatever it is, it is none that we could tell to be ours.
    return false;
  }
}
