/**
 * Phase 7 of 8: what was copied becomes a standby or a cluster of its own, in an order that no crash can turn into something wrong.
 *
 * WAL, tablespace links, configuration, the signal file and backup_label go in first, then everything is brought to the
 * disk, then a replaced directory gives way, and at the very end pg_control is renamed into place (R2.5): until that
 * rename nothing here can be started, after it everything is complete and durable. The files of `onReady` need a server and run
 * after it; until they have come to their end a setting keeps every other server from starting.
 */
import {
  chmod,
  constants,
  copyFile,
  mkdir,
  open,
  readdir,
  rename,
  rm,
  rmdir,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { join, relative } from 'node:path';
import { CloneError, type Verdict } from '@pgcloned/contract';
import {
  type BackupStart,
  formatTablespaceMap,
  parseLsn,
  segmentName,
  segmentStartOfName,
  segmentsBetween,
  walSubdirectories,
} from '@pgcloned/postgres';
import { codeOf, isDiskFull, syncDirectory } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import { removeCopyJournal } from '../copy/journal.ts';
import type { Ready } from '../ready.ts';
import { noteSource } from '../replica/beside-source.ts';
import { configureReplica } from '../replica/configure.ts';
import { isDetached } from '../replica/detached.ts';
import { forgetNotedSlot, SLOT_NOTE } from '../replica/slot.ts';
import { tryPrivately } from '../replica/try-privately.ts';
import type { Place } from '../target/layout.ts';
import { writeManifest } from '../target/manifest.ts';
import { writeMarker } from '../target/marker.ts';
import { refuseProtected } from '../target/old-cluster.ts';
import { refuseIfTooLarge } from '../target/space.ts';
import { endSwap, recoverSwap, swapIntoPlace } from '../target/swap.ts';
import { syncFilesystems } from '../target/sync.ts';
import type { Copy } from './copy-files.ts';
import type { Stop } from './stop-backup.ts';
import type { WalStream } from './stream-wal.ts';

const SEGMENT = /^[0-9A-F]{24}$/;
const HISTORY = /^[0-9A-F]{8}\.history$/;

export interface Published {
  /** Everything that was filled, with what it replaced. */
  readonly places: readonly Place[];
  /** What became of `verification.boot`; null: that is still to come. */
  readonly boot: Verdict | null;
}

export async function publish(
  run: CloneRun,
  ready: Ready,
  {
    stream,
    start,
    copy,
    stop,
  }: {
    readonly stream: WalStream;
    readonly start: BackupStart;
    readonly copy: Copy;
    readonly stop: Stop;
  },
): Promise<Published> {
  const places: readonly Place[] = [
    ready.data,
    ...(ready.wal === null ? [] : [ready.wal]),
    ...copy.tablespaces,
  ];
  const mode = ready.facts.dataDirectoryMode;
  const fileMode = (mode & 0o040) === 0 ? 0o600 : 0o640;
  const directory = ready.data.build;
  // All that a detached clone will ever need of its source is here: what becomes of that is nothing to it any more.
  if (isDetached(run.plan)) {
    await stream.pin?.release();
    await ready.session[Symbol.asyncDispose]();
  }
  try {
    await placeWal(ready, {
      ...{ stream, start, mode, fileMode },
      endLsn: isDetached(run.plan) ? stop.stopLsn : null,
    });
    await linkTablespaces(directory, copy, fileMode);
    await configureReplica(run, ready, fileMode);
    const mayShare = ready.sameHost && !isDetached(run.plan);
    await noteSource(directory, mayShare ? ready.facts.dataDirectory : null, fileMode);
    // R9.2: without either the clone would write on the timeline of its source.
    const becomes = isDetached(run.plan) ? 'recovery.signal' : 'standby.signal';
    await writeFile(join(directory, becomes), '', { mode: fileMode });
    await writeFile(join(directory, 'backup_label'), stop.label, { mode: fileMode });
    const control = join(directory, 'global', 'pgcloned.pg_control');
    await writeFile(control, stop.controlImage, { mode: fileMode });
    for (const place of places) await finishPlace(run, ready, place, mode);
    await syncFilesystems(
      places.map(({ build }) => build),
      run.signal,
    ).catch(async (error: unknown) => {
      // What the disk has lost no later attempt may keep (R8.1).
      if (error !== run.signal.reason) await removeCopyJournal(directory);
      throw error;
    });
    run.signal.throwIfAborted();
    // As late as can be: an attempt that breaks off before it leaves what the next one builds upon.
    await removeCopyJournal(directory);
    await syncDirectory(directory);
    if (places.some(({ old }) => old !== null)) await swap(run, ready, places);
    if (run.plan.spec.verification.manifest) {
      await writeManifest(ready.data.final, {
        ...{ ...ready.facts, tablespaces: copy.tablespaces, sums: copy.sums, fileMode },
        wal: { timeline: start.timeline, startLsn: start.startLsn, endLsn: stop.stopLsn },
        becomes: new Map([
          ['global/pgcloned.pg_control', 'global/pg_control'],
          [SLOT_NOTE, null],
          [relative(ready.data.build, ready.temporaryWalDirectory), null],
        ]),
      });
    }
  } catch (error) {
    run.signal.throwIfAborted();
    throw asPublishError(error, ready);
  }
  // From here on no signal is heeded: a rename is not taken back. But what `onReady` has not made ready is not published yet.
  await renameControlFile(ready.data.final);
  const boot = run.plan.source.onReady.length > 0 ? await tryPrivately(run, ready, stop) : null;
  run.observer.published();
  run.observer.instance({ state: 'stopped' });
  await endSwap(ready.data.final);
  await forgetNotedSlot(ready.data.final);
  return { places, boot };
}

/** R4.11, R4.15: every segment from the start on, marked as archived, and the history files. */
async function placeWal(
  ready: Ready,
  {
    stream,
    start,
    endLsn,
    mode,
    fileMode,
  }: {
    readonly stream: WalStream;
    readonly start: BackupStart;
    /** What follows is left out. Null: all that has come is of use. */
    readonly endLsn: string | null;
    readonly mode: number;
    readonly fileMode: number;
  },
): Promise<void> {
  const inside = join(ready.data.build, 'pg_wal');
  const home = ready.wal?.build ?? inside;
  if (ready.wal !== null) {
    await rmdir(inside);
    await symlink(ready.wal.final, inside);
  }
  for (const name of walSubdirectories(ready.facts.major))
    await mkdir(join(home, name), { recursive: true, mode });

  const { timeline, startLsn } = start;
  const segmentBytes = ready.facts.walSegmentBytes;
  const first = segmentName({ timeline, lsn: startLsn, segmentBytes });
  if (endLsn !== null)
    await endWalAt(stream.directory, { timeline, startLsn, endLsn, segmentBytes });
  const names = (await readdir(stream.directory)).filter(
    (name) => HISTORY.test(name) || (SEGMENT.test(name) && name >= first),
  );
  if ((await stat(stream.directory)).dev !== (await stat(home)).dev) {
    const bytes = names.length * segmentBytes;
    await refuseIfTooLarge([{ path: home, bytes }], segmentBytes);
  }
  for (const name of names) {
    await moveFile(join(stream.directory, name), join(home, name));
    await chmod(join(home, name), fileMode);
    await writeFile(join(home, 'archive_status', `${name}.done`), '', { mode: fileMode });
  }
}

/**
 * A cluster of its own replays all WAL that it finds. What has come beyond the end of the backup is not of the copy: a
 * standby may have received hours of what it has not replayed, and a tablespace made in them would be that of the source
 * (R1.11). The segment that holds the end keeps its length, as zeros that take no room.
 */
async function endWalAt(
  directory: string,
  position: Parameters<typeof segmentsBetween>[0] & { readonly endLsn: string },
): Promise<void> {
  const { endLsn, segmentBytes } = position;
  const last = segmentsBetween(position).at(-1) ?? '';
  for (const name of await readdir(directory))
    if (SEGMENT.test(name) && name > last) await rm(join(directory, name));
  const startsAt = segmentStartOfName(last, segmentBytes);
  if (startsAt === null) return;
  const path = join(directory, last);
  await truncate(path, Number(parseLsn(endLsn) - startsAt));
  await truncate(path, segmentBytes);
}

/** A rename where it can be, a copy where the caller chose another filesystem. */
async function moveFile(from: string, to: string): Promise<void> {
  try {
    await rename(from, to);
  } catch (error) {
    if (codeOf(error) !== 'EXDEV') throw error;
    await copyFile(from, to, constants.COPYFILE_EXCL);
    await rm(from);
  }
}

/** R1.12: the links are there for whoever looks, and the map is what the server makes them from. */
async function linkTablespaces(
  directory: string,
  { tablespaces }: Copy,
  fileMode: number,
): Promise<void> {
  if (tablespaces.length === 0) return;
  for (const { oid, location } of tablespaces)
    await symlink(location, join(directory, 'pg_tblspc', oid));
  const map = formatTablespaceMap(
    tablespaces.map(({ oid, location }) => ({
      oid,
      location: Buffer.from(location).toString('latin1'),
    })),
  );
  await writeFile(join(directory, 'tablespace_map'), map, { mode: fileMode });
}

async function finishPlace(
  { plan }: CloneRun,
  { data }: Ready,
  { kind, build, old }: Place,
  mode: number,
): Promise<void> {
  // The server refuses a data directory that was there before with other rights (R6.11).
  await chmod(build, mode);
  await writeMarker(build, kind, {
    cloneId: plan.id,
    dataDirectory: data.final,
    // What is built aside is finished by the swap: until then it is of no use to anybody.
    finished: old === null,
  });
}

async function swap(run: CloneRun, ready: Ready, places: readonly Place[]): Promise<void> {
  const dataDirectory = ready.data.final;
  await refuseProtected(dataDirectory, run.plan);
  run.cleanup.onFailure({
    what: `directories moved aside for ${dataDirectory}`,
    remedy: `Clone into ${dataDirectory} again: the next clone puts them back first.`,
    unlimited: true,
    undo: async () => {
      await recoverSwap(dataDirectory);
    },
  });
  await swapIntoPlace(dataDirectory, { cloneId: run.plan.id, places });
}

async function renameControlFile(dataDirectory: string): Promise<void> {
  const directory = join(dataDirectory, 'global');
  const temporary = join(directory, 'pgcloned.pg_control');
  {
    await using file = await open(temporary, 'r+');
    await file.sync();
  }
  await rename(temporary, join(directory, 'pg_control'));
  await syncDirectory(directory);
}

function asPublishError(error: unknown, { data }: Ready): unknown {
  const code = codeOf(error);
  // A full filesystem is told of like everywhere (`target/filesystem-failure.ts`).
  if (error instanceof CloneError || code === null || isDiskFull(error)) return error;
  return new CloneError('PUBLISH_FAILED', `the clone could not be put into place: ${code}`, {
    facts: { dataDirectory: data.final, reason: code },
    hint: 'See the filesystem of the target and the log of the kernel, then clone again.',
    cause: error,
  });
}
