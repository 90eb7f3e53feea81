/** The last moment of an old cluster that is brought up to date, see `target/old-cluster.ts`. */
import { realpath } from 'node:fs/promises';
import { join } from 'node:path';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { hasControlFile } from '../target/marker.ts';
import { giveUpOldCluster, orphansOf, refuseProtected } from '../target/old-cluster.ts';
import { openCopyJournal, removeCopyJournal, whatIsCopied } from './journal.ts';
import { type Listed, planCopy, refuseIfFull } from './root-plan.ts';

/**
 * Gives up the old cluster in the target, if it is one still; from then on it is an unfinished clone.
 *
 * @throws {CloneError} `TARGET_NO_SPACE`, `SOURCE_LAYOUT_UNSUPPORTED`, `CLONE_PROTECTED`: then the old cluster is what it was.
 */
export async function takeOver(
  { plan, observer }: CloneRun,
  ready: Ready,
  listed: Listed,
): Promise<void> {
  const { data, wal, facts } = ready;
  if (!(await hasControlFile(data.final))) return;
  // From here on there is no way back, so what can be found out beforehand is.
  await refuseIfFull(await planCopy({ ready, ...listed, isVouched: () => false }), ready);
  const ownDirectories = await Promise.all(
    [
      join(facts.dataDirectory, 'pg_wal'),
      ...facts.tablespaces.map(({ location }) => join(location, facts.tablespaceDirectoryName)),
    ].map(async (directory) => await realpath(directory).catch(() => directory)),
  );
  const orphans = await orphansOf(data.final, {
    places: [...(wal === null ? [] : [wal]), ...listed.tablespaces],
    tablespaceDirectoryName: facts.tablespaceDirectoryName,
    isOfSource: (directory) => ready.sameHost && ownDirectories.includes(directory),
  });
  await refuseProtected(data.final, plan);
  await giveUpOldCluster(data.final, {
    cloneId: plan.id,
    beginJournal: async () => {
      await removeCopyJournal(data.final);
      await using _ = await openCopyJournal(data.final, whatIsCopied(ready));
    },
  });
  for (const orphan of orphans) observer.leftover(orphan);
  observer.log('info', 'the old contents of the target are given up');
}
