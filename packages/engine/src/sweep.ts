/**
 * What a worker that died by `kill -9` left of a clone is put away: an interrupted swap, temporary directories, the
 * sockets of its tunnel, the standby's slot.
 *
 * What a published clone has replaced is named, unless it was about to go.
 *
 * Everything else ended by itself: children by the kernel, sessions and temporary slots with their connections, the
 * rsync daemon with its lease. The unfinished copy of a clone that was not cancelled stays, marked and unstartable: the
 * next attempt, or the next clone into it, builds upon it.
 */
import type { Leftover } from '@pgcloned/contract';
import { isWithin } from '@pgcloned/process';
import { removeDeadTunnels } from './database-tunnel.ts';
import type { ClonePlan } from './plan.ts';
import { removeBootDirectory } from './replica/private-run.ts';
import { dropNotedSlot, notedSlot } from './replica/slot.ts';
import { guardPath } from './target/guard.ts';
import { makePlace, temporaryWalPath } from './target/layout.ts';
import { makeLockSet } from './target/locks.ts';
import { hasControlFile, isPublished, isStartable, readMarker } from './target/marker.ts';
import { forgetPorts } from './target/ports.ts';
import {
  type FilledDirectory,
  removeMarked,
  removePrepared,
  removeStrays,
} from './target/prepare.ts';
import { findReplaced, leftoversOf, removeReplaced } from './target/replaced.ts';
import { recoverSwap } from './target/swap.ts';

export interface SweepReport {
  /** Whether the clone was published before its worker died: then its directory can be started. */
  readonly published: boolean;
  readonly leftovers: readonly Leftover[];
}

export interface SweepOptions {
  /**
   * What becomes of the clone, which says what of the copy is still of use: all of it if the clone is made again, what lies
   * where it shall lie if it has failed, nothing if it was cancelled or made of reflinks. A published clone is left alone.
   */
  readonly becomes: 'queued' | 'failed' | 'cancelled';
  /** What the clone had begun to fill, as the observer was told. */
  readonly filled: readonly FilledDirectory[];
  readonly signal: AbortSignal;
}

/**
 * @throws {CloneError} `TARGET_BUSY` if another clone works on the target meanwhile: then it has put all away itself.
 */
export async function sweepClone(
  plan: ClonePlan,
  { becomes, filled, signal }: SweepOptions,
): Promise<SweepReport> {
  const { id, spec, host } = plan;
  const finals = [await guardPath(spec.target.dataDirectory, host)];
  if (spec.target.walDirectory !== null)
    finals.push(await guardPath(spec.target.walDirectory, host));
  const [dataDirectory = '', walDirectory = dataDirectory] = finals;
  const elsewhere = filled.filter(({ final }) => !isWithin(final, dataDirectory));
  for (const { final } of elsewhere) await guardPath(final, host);
  await using locks = makeLockSet(id);
  await locks.take([...new Set([...finals, ...elsewhere.map(({ final }) => final)])], signal);

  await removeDeadTunnels(dataDirectory);
  await removeBootDirectory(dataDirectory);
  await recoverSwap(dataDirectory);
  const leftovers: Leftover[] = [];
  for (const replaces of [false, true]) {
    // It may lie in an old cluster that the clone had not yet begun to bring up to date.
    const wal = makePlace('wal', walDirectory, { cloneId: id, replaces });
    const temporary = await temporaryWalPath(spec.target, wal, id);
    if ((await readMarker(temporary, 'temporary-wal')) !== null)
      await removeMarked(temporary, 'temporary-wal');
    const place = makePlace('data', dataDirectory, { cloneId: id, replaces });
    const marker = await readMarker(place.build, 'data');
    if (marker?.cloneId !== id || (await hasControlFile(place.build))) continue;
    const noted = await notedSlot(place.build);
    if (noted !== null)
      leftovers.push(...(await dropNotedSlot({ plan, signal }, noted, dataDirectory)));
  }
  const published = await isPublished(dataDirectory, id);
  if (!published && becomes !== 'queued') {
    // The data directory last: it is what says that the others are not finished.
    for (const directory of [...filledBy(plan, finals, filled)].reverse()) {
      const isOfUse =
        spec.method === 'rsync' && becomes === 'failed' && directory.path === directory.final;
      if (!isOfUse) await removeOwn(directory, id);
    }
    await forgetPorts(dataDirectory);
  }
  for (const [index, final] of finals.entries()) {
    const kind = index === 0 ? 'data' : 'wal';
    const { build } = makePlace(kind, final, { cloneId: id, replaces: true });
    await removeStrays({ kind, final }, becomes === 'queued' ? [build] : []);
  }

  leftovers.push(...(await putAwayReplaced(plan, { dataDirectory, filled, published })));
  return { published, leftovers };
}

/**
 * A removal that was begun is brought to its end. What a published clone has replaced goes if nothing was to follow but that;
 * else nobody knows whether the clone serves, and it is named.
 */
async function putAwayReplaced(
  { id, spec }: ClonePlan,
  {
    dataDirectory,
    filled,
    published,
  }: {
    readonly dataDirectory: string;
    readonly filled: readonly FilledDirectory[];
    readonly published: boolean;
  },
): Promise<readonly Leftover[]> {
  const wasLast = () =>
    published && !spec.replica.start && spec.replica.waitFor === 'files' && !spec.verification.boot;
  const leftovers: Leftover[] = [];
  for (const set of await findReplaced(dataDirectory, filled)) {
    const isOwn = set.cloneId === id;
    try {
      if (set.removalHasBegun || (isOwn && wasLast())) await removeReplaced(set);
      else if (isOwn) leftovers.push(...leftoversOf(set));
    } catch {
      // It cannot be started any more, or is as it was, and whoever reads of it can remove it.
      if (isOwn) leftovers.push(...leftoversOf(set));
    }
  }
  return leftovers;
}

/**
 * The data directory first. Of a worker that had no time to write down what it made, what the plan names; but not of one
 * that brings an old cluster up to date, which it did not make.
 */
function filledBy(
  { id, spec }: ClonePlan,
  finals: readonly string[],
  filled: readonly FilledDirectory[],
): Iterable<FilledDirectory> {
  const byPath = new Map<string, FilledDirectory>();
  for (const [index, final] of spec.target.ifExists === 'resync' ? [] : finals.entries()) {
    const kind = index === 0 ? 'data' : 'wal';
    for (const replaces of [false, true]) {
      const { build: path } = makePlace(kind, final, { cloneId: id, replaces });
      byPath.set(path, { path, kind, final, madeFrom: path });
    }
  }
  for (const directory of filled) byPath.set(directory.path, directory);
  return byPath.values();
}

async function removeOwn(directory: FilledDirectory, cloneId: string): Promise<void> {
  const { path, kind } = directory;
  // What can be started is somebody's, whatever its marker says.
  if (kind === 'data' && (await isStartable(path))) return;
  if ((await readMarker(path, kind))?.cloneId === cloneId) await removePrepared(directory);
}
