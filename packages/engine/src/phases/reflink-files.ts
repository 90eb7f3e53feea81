/**
 * Phase 4 of 8 for method reflink: every file of PGDATA and of every tablespace gets a twin here that shares its blocks,
 * while the source goes on writing.
 *
 * Promises what `copy-files.ts` promises of the files. Each is what its original was at one moment (R10.1), and recovery
 * makes one moment of all of them, as it does of files that were sent. Nothing is ever copied byte by byte, unless that was
 * asked for. The directories are empty when it begins: nobody builds upon reflinks.
 */
import { join } from 'node:path';
import { formatBytes } from '@pgcloned/contract';
import type { BackupStart } from '@pgcloned/postgres';
import { keepCopyOnWrite, reflinkFiles as reflinkAll } from '@pgcloned/reflink';
import { listFiles, type SourceEntry } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import { bytePath, makeDirectories } from '../copy/directories.ts';
import { type Root, refuseSource, rootsOf, selectRoot, tablespacesNow } from '../copy/roots.ts';
import { bytesOf, type Selection } from '../copy/select.ts';
import { openVerification } from '../copy/verification.ts';
import type { Ready } from '../ready.ts';
import { workersOf } from '../transfer-control.ts';
import type { Copy } from './copy-files.ts';
import { prepareClonePlace } from './stream-wal.ts';

export async function reflinkFiles(
  run: CloneRun,
  ready: Ready,
  start: Pick<BackupStart, 'startLsn'>,
): Promise<Copy> {
  const { observer, plan, signal } = run;
  const tablespaces = await tablespacesNow(run, ready);
  const roots = rootsOf(ready, tablespaces);
  const listings = await listFiles(ready.host.runner(), {
    roots: roots.map(({ source }) => source),
    stallMs: plan.host.stallMs,
    signal,
  });
  await refuseSource(run, ready, tablespaces);
  const plans = roots.map((root, index) => {
    const listing = listings[index] ?? null;
    const { selection } = selectRoot({ ready, tablespaces, root, listing });
    return { root, ...selection, twins: listing === null ? [] : twinsOf(root, listing, selection) };
  });
  for (const place of tablespaces) await prepareClonePlace(run, ready, place);
  for (const { root, directories, twins } of plans) {
    await makeDirectories(root.destination, directories, ready.facts.dataDirectoryMode);
    await keepCopyOnWrite(twins, { signal });
  }
  const workers = workersOf(run.transferControl.limits());
  observer.copyPlanned({
    bytesTotal: plans.reduce((sum, { files }) => sum + bytesOf(files), 0),
    filesTotal: plans.reduce((sum, { files }) => sum + files.length, 0),
    keptBytes: 0,
    workers,
  });
  const { bytes, files, copiedBytes } = await reflinkAll({
    files: plans.flatMap(({ root, files: selected }) =>
      selected.map(({ name }) => ({
        from: bytePath(root.source, name),
        to: bytePath(root.destination, name),
      })),
    ),
    workers,
    fallback: plan.spec.transfer.fallback,
    signal,
    onCopied: (_file, fileBytes) => {
      observer.copied({ worker: null, bytes: fileBytes, files: 1 });
    },
  });
  if (copiedBytes > 0)
    run.warn(
      `${formatBytes(copiedBytes)} of the clone were copied, since they could not be shared`,
    );
  await using verification = openVerification(run, ready, start);
  return {
    bytes,
    files,
    keptBytes: 0,
    compression: null,
    transfer: copiedBytes > 0 ? 'skipped' : 'passed',
    tablespaces,
    ...(await verification.finish(plans, signal)),
  };
}

/** The directories that are there as well as here, the root among them: what is a link there is another directory here. */
function twinsOf(
  { source, destination }: Root,
  listing: readonly SourceEntry[],
  { directories }: Selection,
): readonly { readonly from: string; readonly to: string }[] {
  const there = new Set(listing.filter(({ type }) => type === 'directory').map(({ name }) => name));
  const names = ['', ...directories.filter((name) => there.has(name))];
  return names.map((name) => {
    const path = Buffer.from(name, 'latin1').toString('utf8');
    return { from: join(source, path), to: join(destination, path) };
  });
}
