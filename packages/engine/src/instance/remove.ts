/**
 * Removing a clone that has ended: its server, its data directory, and its WAL and tablespace directories elsewhere.
 *
 * Only what carries the marker of this very clone is removed (R11.5). First of all its pg_control goes, durably (R2.5): from
 * then on it is an unfinished copy like any other, that nobody can take for a clone and nobody can start. Its marker goes
 * last, and the data directory after all other parts, so what a crash has left the next call removes.
 */
import { readdir, readlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { CloneError, type Leftover } from '@pgcloned/contract';
import { stopServer } from '@pgcloned/postgres';
import { ifMissing, isWithin, quoteForShell, syncDirectory } from '@pgcloned/process';
import type { ClonePlan } from '../plan.ts';
import { dropReplicaSlot, replicaSlotLeft } from '../replica/slot.ts';
import { guardPath, inspectDirectory, resolveReal } from '../target/guard.ts';
import { makeLockSet } from '../target/locks.ts';
import { hasControlFile, readMarker } from '../target/marker.ts';
import { refuseMountsBelow } from '../target/mounts.ts';
import { externalWal, refuseRunningServer, takeControlFileAway } from '../target/old-cluster.ts';
import { forgetPorts } from '../target/ports.ts';
import {
  type PreparedDirectory,
  removeMade,
  removePrepared,
  removeStrays,
} from '../target/prepare.ts';
import { findReplaced, leftoversOf, removeReplaced } from '../target/replaced.ts';
import { recoverSwap } from '../target/swap.ts';
import { cloneIn, guardedDataDirectory, type InstancePlan, instanceChanged } from './look.ts';
import { binDirectoryOf } from './serve.ts';

export interface RemoveOptions {
  /** How the source is reached, for the slot of the standby; null: this host knows it no longer. */
  readonly source: ClonePlan | null;
  /** `HOST:PORT` of the server that was copied, if that is known. */
  readonly copiedServer: string | null;
  /** Hears of each leftover of the clone that has gone with it, by its `what`. */
  readonly onGone: (what: string) => void;
  readonly signal: AbortSignal;
}

/**
 * What the clone had replaced and could not remove goes, too, if that was a clone of ours: whoever has asked for another one in
 * its place, and removes that now, wants neither.
 *
 * Settles when nothing of the clone is left but what it returns. An abort leaves something that the next call removes.
 *
 * @throws {CloneError} `INSTANCE_CHANGED` if another thing lies there, `TARGET_BUSY` while a clone works on the directory,
 *   `PROCESS_FAILED` if its server does not stop; then nothing was removed. `REMOVAL_FAILED` if some of it was.
 */
export async function removeInstance(
  plan: InstancePlan,
  options: RemoveOptions,
): Promise<readonly Leftover[]> {
  const { id, host, filled } = plan;
  const { signal } = options;
  const dataDirectory = await guardedDataDirectory(plan);
  await using locks = makeLockSet(id, { ofInstance: true });
  await locks.take([dataDirectory], signal);
  await recoverSwap(dataDirectory);
  const data = asRemoved(
    filled.find(({ final, kind }) => kind === 'data' && final === dataDirectory),
    dataDirectory,
  );
  const found = await cloneIn(dataDirectory);
  if (found !== id) {
    const state = await inspectDirectory(dataDirectory, 'data');
    if (state !== 'absent' && state !== 'empty')
      throw instanceChanged(dataDirectory, { id, found });
    // Whoever took it away by hand may have moved it: what belongs to it is named and stays.
    const parts = await ownParts(plan, dataDirectory);
    // An earlier call died at its very last step.
    if (data.madeFrom !== null) await removeMade(dataDirectory, data.madeFrom);
    await forgetPorts(dataDirectory);
    return parts.map(({ path }) => ({
      what: `${path}, a part of the clone that was in ${dataDirectory}`,
      remedy: withCare(path),
    }));
  }

  const parts = await ownParts(plan, dataDirectory);
  for (const { path } of parts) await guardPath(path, host);
  for (const { path } of [data, ...parts]) await refuseMountsBelow(path);
  await locks.take(
    parts.map(({ path }) => path),
    signal,
  );
  const leftovers = [...(await foreignParts(dataDirectory, parts))];
  if (await hasControlFile(dataDirectory)) {
    await stopServer({
      binDirectory: await binDirectoryOf(plan, dataDirectory, signal),
      dataDirectory,
      signal,
      // What nobody will ever start again needs no checkpoint.
      mode: 'immediate',
    });
    await takeControlFileAway(dataDirectory);
  } else await refuseRunningServer(dataDirectory);
  leftovers.push(...(await dropSlot(plan, options, dataDirectory)));

  const places = [...filled, ...parts.map(({ kind, path }) => ({ kind, final: path }))];
  for (const set of await findReplaced(dataDirectory, places)) {
    if (set.was === 'foreign' && !set.removalHasBegun) continue;
    signal.throwIfAborted();
    try {
      await removeReplaced(set);
    } catch (error) {
      // Somebody has started it, and wants it back: it stays, and is named still.
      if (error instanceof CloneError && error.code === 'TARGET_IN_USE') continue;
      throw asRemovalError(error, set.dataDirectory);
    }
    for (const { what } of leftoversOf(set)) options.onGone(what);
  }
  for (const part of [...parts, data]) {
    signal.throwIfAborted();
    try {
      await removePrepared(part);
      await removeStrays({ kind: part.kind, final: part.path });
    } catch (error) {
      throw asRemovalError(error, part.path);
    }
  }
  const { existing } = await resolveReal(dirname(dataDirectory));
  await syncDirectory(existing);
  await forgetPorts(dataDirectory);
  return leftovers;
}

async function dropSlot(
  { spec }: InstancePlan,
  { source, copiedServer, signal }: RemoveOptions,
  dataDirectory: string,
): Promise<readonly Leftover[]> {
  const { slot } = spec.replica;
  if (slot === null) return [];
  if (source === null) return [replicaSlotLeft(slot, copiedServer ?? 'the source')];
  return await dropReplicaSlot(
    { plan: source, signal },
    { slotName: slot, copiedServer, dataDirectory },
  );
}

/** What the clone has filled outside its data directory and still carries its marker. */
async function ownParts(
  { id, filled }: InstancePlan,
  dataDirectory: string,
): Promise<readonly PreparedDirectory[]> {
  const parts = new Map<string, PreparedDirectory>();
  const offer = async (part: PreparedDirectory) => {
    const { path, kind } = part;
    if (isWithin(path, dataDirectory) || parts.has(path) || !(await isOf(path, kind, id))) return;
    parts.set(path, part);
  };
  for (const one of filled) {
    if (one.kind === 'data' || one.kind === 'temporary-wal') continue;
    await offer(asRemoved(one, one.final));
  }
  // Also of a clone whose journal this host has lost.
  const wal = await externalWal(dataDirectory);
  if (wal !== null) await offer({ path: wal, kind: 'wal', madeFrom: wal });
  for (const path of await versionDirectories(dataDirectory))
    await offer({ path, kind: 'tablespace', madeFrom: path });
  return [...parts.values()];
}

/**
 * Tablespaces that were made on the clone after its end. They may as well be those of another server: a standby repeats
 * `CREATE TABLESPACE` with the path of its source (R1.11).
 */
async function foreignParts(
  dataDirectory: string,
  parts: readonly PreparedDirectory[],
): Promise<readonly Leftover[]> {
  const foreign = (await versionDirectories(dataDirectory)).filter(
    (path) => !isWithin(path, dataDirectory) && !parts.some((part) => part.path === path),
  );
  return foreign.map((path) => ({
    what: `${path}, which the clone in ${dataDirectory} linked to and did not make`,
    remedy: withCare(path),
  }));
}

const withCare = (path: string) => `# if no other server uses it: rm -r ${quoteForShell(path)}`;

/** `PG_15_202209061` and the like in every location that pg_tblspc links to. */
async function versionDirectories(dataDirectory: string): Promise<readonly string[]> {
  const directory = join(dataDirectory, 'pg_tblspc');
  const found: string[] = [];
  for (const name of await readdir(directory).catch(ifMissing([]))) {
    // One that is no link lies in the data directory itself.
    const location = await readlink(join(directory, name)).catch(() => null);
    if (location === null) continue;
    // Gone, or of another user: then it is not ours to name.
    const names = await readdir(location).catch(() => []);
    found.push(...names.filter((one) => one.startsWith('PG_')).map((one) => join(location, one)));
  }
  return found;
}

async function isOf(path: string, kind: PreparedDirectory['kind'], id: string): Promise<boolean> {
  return (await readMarker(path, kind))?.cloneId === id;
}

/**
 * What was built aside and moved into place is ours itself, but none of its parents. What nobody knows to be made by us is
 * emptied and stays.
 */
function asRemoved(
  filled: (PreparedDirectory & { readonly final: string }) | undefined,
  path: string,
): PreparedDirectory {
  if (filled === undefined) return { path, kind: 'data', madeFrom: null };
  return filled.path === path ? filled : { path, kind: filled.kind, madeFrom: path };
}

function asRemovalError(error: unknown, directory: string): unknown {
  const { code, path } = error as NodeJS.ErrnoException;
  if (code === undefined || error instanceof CloneError) return error;
  return new CloneError('REMOVAL_FAILED', `${path ?? directory} could not be removed: ${code}`, {
    facts: { directory, path: path ?? null, reason: code },
    hint: `Mend what stands against it. It is tried again until nothing is left of ${directory}, which cannot be started any more.`,
    cause: error,
  });
}
