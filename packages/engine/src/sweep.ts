/**
 * What a worker that died by `kill -9` left of a clone is put away: an interrupted swap, temporary directories, the
 * standby's slot.
 *
 * What a published clone has replaced is named, and nobody but the user removes it.
 *
 * Everything else ended by itself: children by the kernel, sessions and temporary slots with their connections, the
 * rsync daemon with its lease. The unfinished copy stays, marked and unstartable; the next clone into it builds upon it.
 */
import type { Leftover } from '@pgcloned/contract';
import { resolveConnection } from '@pgcloned/postgres';
import { quoteForShell } from '@pgcloned/process';
import type { ClonePlan } from './plan.ts';
import { dropSlot, notedSlot } from './replica/slot.ts';
import { guardPath } from './target/guard.ts';
import { makePlace, temporaryWalPath } from './target/layout.ts';
import { makeLockSet } from './target/locks.ts';
import { exists, hasControlFile, isPublished, readMarker } from './target/marker.ts';
import { removeMarked, removeStrays } from './target/prepare.ts';
import { recoverSwap } from './target/swap.ts';

export interface SweepReport {
  /** Whether the clone was published before its worker died: then its directory can be started. */
  readonly published: boolean;
  readonly leftovers: readonly Leftover[];
}

/**
 * @throws {CloneError} `TARGET_BUSY` if another clone works on the target meanwhile: then it has put all away itself.
 */
export async function sweepClone(
  plan: ClonePlan,
  { signal }: { readonly signal: AbortSignal },
): Promise<SweepReport> {
  const { id, spec, host } = plan;
  const finals = [await guardPath(spec.target.dataDirectory, host)];
  if (spec.target.walDirectory !== null)
    finals.push(await guardPath(spec.target.walDirectory, host));
  const [dataDirectory = '', walDirectory = dataDirectory] = finals;
  await using locks = makeLockSet(id);
  await locks.take(finals, signal);

  await recoverSwap(dataDirectory);
  const leftovers: Leftover[] = [];
  for (const replaces of [false, true]) {
    const place = makePlace('data', dataDirectory, { cloneId: id, replaces });
    const marker = await readMarker(place.build, 'data');
    if (marker?.cloneId !== id || (await hasControlFile(place.build))) continue;
    const slotName = await notedSlot(place.build);
    if (slotName !== null) leftovers.push(...(await dropNotedSlot(plan, slotName, signal)));
    const wal = makePlace('wal', walDirectory, { cloneId: id, replaces });
    const temporary = await temporaryWalPath(spec.target, wal, id);
    if ((await readMarker(temporary, 'temporary-wal')) !== null)
      await removeMarked(temporary, 'temporary-wal');
  }
  await removeStrays({ kind: 'data', final: dataDirectory });
  if (walDirectory !== dataDirectory) await removeStrays({ kind: 'wal', final: walDirectory });

  for (const final of finals) {
    const { old } = makePlace('data', final, { cloneId: id, replaces: true });
    if (old !== null && (await exists(old)))
      leftovers.push({ what: `replaced directory ${old}`, remedy: `rm -r ${quoteForShell(old)}` });
  }
  return { published: await isPublished(dataDirectory, id), leftovers };
}

/** The source may be down just now; then whoever reads the record knows what to do. */
async function dropNotedSlot(
  plan: ClonePlan,
  slotName: string,
  signal: AbortSignal,
): Promise<readonly Leftover[]> {
  try {
    const settings = await resolveConnection(plan.source);
    await dropSlot(settings, {
      slotName,
      applicationName: `pgcloned_${plan.id}_${String(plan.attempt)}`,
      signal,
    });
    return [];
  } catch {
    return [
      {
        what: `replication slot ${slotName} on ${plan.source.host}:${String(plan.source.port)}`,
        remedy: `SELECT pg_drop_replication_slot('${slotName}')`,
      },
    ];
  }
}
