/**
 * Locks on the directories of a clone, one file each in a fixed directory of the machine, so that they exclude
 * `pgcloned run` and workers of any configuration alike.
 *
 * A lock is held by an open file description that our children inherit: it ends with the last of them, not with us. The
 * files say which directory they stand for, so that a clone above or below a running one is refused too, not only one
 * in the same place. A short common lock makes check and take one step; it is also held whenever a file is opened or
 * removed, so no file is removed that somebody is about to lock. The file of the common lock itself stays.
 */
import { createHash } from 'node:crypto';
import { access, constants, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { codeOf, type FileLock, isWithin, lockFile, readPlainFile } from '@pgcloned/process';

/** /run/lock is the same for every process of a machine, also for those with a private /tmp. */
const LOCK_DIRECTORIES = ['/run/lock', '/var/tmp'];
const PREFIX = 'pgcloned-';
/** Taking all locks is a matter of milliseconds; whoever holds the common one longer is stuck. */
const COMMON_LOCK_WAIT_MS = 10_000;

/**
 * What ends soon is waited for. What a killed worker of this very clone has left behind holds its locks until the kernel is
 * done with it: moments, or as long as a disk takes for what is on its way. So does the start, stop or removal of a clone in
 * whose place the next one is asked for at once.
 */
const WAIT_MS = 30_000;
const POLL_MS = 100;

/** The locks of one clone, held from its first attempt to its last. */
export interface LockSet extends AsyncDisposable {
  /**
   * Takes what is not held yet.
   *
   * @throws {CloneError} `TARGET_BUSY` naming the directory and the clone that holds it.
   */
  readonly take: (paths: readonly string[], signal: AbortSignal) => Promise<void>;
  /** For children that write into the directories. */
  readonly fds: () => readonly number[];
}

/** @param o.ofInstance For what is done with a clone that has ended, and not for making one. */
export function makeLockSet(
  cloneId: string,
  { ofInstance = false }: { readonly ofInstance?: boolean } = {},
): LockSet {
  const held = new Map<string, FileLock>();
  return {
    take: async (paths, signal) => {
      const missing = paths.filter((path) => !held.has(path));
      const deadlineMs = performance.now() + WAIT_MS;
      for (;;) {
        const locks = await lockDirectories(missing, { cloneId, ofInstance, signal }).catch(
          async (error: unknown) => {
            if (!endsSoon(error, cloneId) || performance.now() > deadlineMs) throw error;
            // Not by waiting for the lock itself: the common one would be held meanwhile.
            await delay(POLL_MS, undefined, { signal });
            return null;
          },
        );
        if (locks === null) continue;
        for (const [path, lock] of locks) held.set(path, lock);
        return;
      }
    },
    fds: () => [...held.values()].map(({ fd }) => fd),
    [Symbol.asyncDispose]: async () => {
      await removeFiles([...held.values()].map(({ path }) => path));
      for (const lock of held.values()) await lock[Symbol.asyncDispose]();
    },
  };
}

/** Refuses what {@link makeLockSet} would refuse, and takes nothing. */
export function makeLockLookout(cloneId: string): LockSet {
  return {
    take: async (paths, signal) => {
      const lockDirectory = await findLockDirectory();
      await using _ = await takeCommonLock(lockDirectory, signal);
      await refuseOverlap(lockDirectory, paths, cloneId, signal);
    },
    fds: () => [],
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

async function lockDirectories(
  paths: readonly string[],
  {
    cloneId,
    ofInstance,
    signal,
  }: { readonly cloneId: string; readonly ofInstance: boolean; readonly signal: AbortSignal },
): Promise<ReadonlyMap<string, FileLock>> {
  const lockDirectory = await findLockDirectory();
  await using _ = await takeCommonLock(lockDirectory, signal);
  await refuseOverlap(lockDirectory, paths, cloneId, signal);

  const held = new Map<string, FileLock>();
  try {
    for (const path of paths.toSorted()) {
      const file = join(lockDirectory, `${PREFIX}${hashOf(path)}.lock`);
      const lock = await lockFile(file, { signal });
      if (lock === null) throw busy(path, path, await readHolder(file));
      held.set(path, lock);
      await describeHolder(lock, { path, cloneId, pid: process.pid, ofInstance });
    }
  } catch (error) {
    for (const lock of held.values()) await lock[Symbol.asyncDispose]();
    throw error;
  }
  return held;
}

export async function takeCommonLock(
  lockDirectory: string,
  signal: AbortSignal,
): Promise<FileLock> {
  const path = join(lockDirectory, `${PREFIX}common.lock`);
  const common = await lockFile(path, { signal, waitMs: COMMON_LOCK_WAIT_MS });
  if (common !== null) return common;
  throw new CloneError('TARGET_BUSY', 'the lock over all targets is not released', {
    facts: { lockFile: path },
    hint: 'Find its holder with `fuser` and see what it waits for.',
  });
}

/**
 * A path of our own beside the lock of a directory, for what must not lie below it. It belongs to whoever holds the lock.
 *
 * @param suffix Another one than `lock`.
 */
export async function pathBesideLock(path: string, suffix: string): Promise<string> {
  return join(await findLockDirectory(), `${PREFIX}${hashOf(path)}.${suffix}`);
}

/** While they are still locked. What cannot be removed is in nobody's way: only its lock counts. */
async function removeFiles(paths: readonly string[]): Promise<void> {
  try {
    const signal = AbortSignal.timeout(COMMON_LOCK_WAIT_MS);
    await using _ = await takeCommonLock(await findLockDirectory(), signal);
    for (const path of paths) await rm(path, { force: true });
  } catch {
    // A disposer never throws. The next clone of the same directory takes the file as it is.
  }
}

interface Holder {
  readonly path: string;
  readonly cloneId: string;
  readonly pid: number;
  readonly ofInstance: boolean;
}

async function refuseOverlap(
  lockDirectory: string,
  paths: readonly string[],
  cloneId: string,
  signal: AbortSignal,
): Promise<void> {
  for (const name of await readdir(lockDirectory)) {
    if (!name.startsWith(PREFIX) || !name.endsWith('.lock') || name === `${PREFIX}common.lock`)
      continue;
    const file = join(lockDirectory, name);
    const holder = await readHolder(file);
    if (holder === null) continue;
    for (const path of paths) {
      if (!(await overlap(path, holder.path))) continue;
      const probe = await lockFile(file, { signal });
      // Our own earlier locks of the same clone are not in the way of its later ones.
      if (probe === null && holder.cloneId !== cloneId) throw busy(path, holder.path, holder);
      // Left by one that was killed.
      if (probe !== null) await rm(file, { force: true }).catch(() => undefined);
      await probe?.[Symbol.asyncDispose]();
    }
  }
}

/** Equal, above or below, or the same directory under another name (a bind mount). */
async function overlap(one: string, other: string): Promise<boolean> {
  if (isWithin(one, other) || isWithin(other, one)) return true;
  const [left, right] = await Promise.all([one, other].map(identityOf));
  return left !== null && left === right;
}

async function identityOf(path: string): Promise<string | null> {
  const found = await stat(path, { bigint: true }).catch(() => null);
  return found === null ? null : `${String(found.dev)}:${String(found.ino)}`;
}

async function describeHolder(lock: FileLock, holder: Holder): Promise<void> {
  const text = `${JSON.stringify(holder)}\n`;
  try {
    await lock.file.truncate(0);
    await lock.file.write(text, 0);
  } catch (error) {
    // The file of another user can be locked but not written; it names the same path already, which is what counts.
    const code = codeOf(error);
    if (code !== 'EBADF' && code !== 'EINVAL') throw error;
  }
}

async function readHolder(file: string): Promise<Holder | null> {
  try {
    const found = await readPlainFile(file);
    if (found === null) return null;
    const { path, cloneId, pid, ofInstance } = JSON.parse(found.text) as Partial<Holder>;
    return typeof path === 'string' && typeof cloneId === 'string' && typeof pid === 'number'
      ? { path, cloneId, pid, ofInstance: ofInstance === true }
      : null;
  } catch (error) {
    // Just created, removed by the administrator, or no lock of ours: nobody is described there.
    if (error instanceof SyntaxError || codeOf(error) === 'EACCES') return null;
    throw error;
  }
}

/** The same for every process of this machine. */
export async function findLockDirectory(): Promise<string> {
  for (const directory of LOCK_DIRECTORIES) {
    try {
      await access(directory, constants.W_OK | constants.X_OK);
      return directory;
    } catch {
      // Not on this machine; the next one is as good for all who run here.
    }
  }
  throw new Error(`neither of ${LOCK_DIRECTORIES.join(', ')} can be written`);
}

const hashOf = (path: string) => createHash('sha256').update(path).digest('hex').slice(0, 32);

/** Whoever holds it works, or worked, on the same clone, or on one that has ended. */
function endsSoon(error: unknown, cloneId: string): boolean {
  if (!(error instanceof CloneError) || error.code !== 'TARGET_BUSY') return false;
  return error.facts.holder === cloneId || error.facts.ofInstance === true;
}

function busy(path: string, heldPath: string, holder: Holder | null): CloneError {
  const ofInstance = holder?.ofInstance ?? false;
  return new CloneError(
    'TARGET_BUSY',
    ofInstance
      ? `the clone in ${heldPath} is being started, stopped or removed`
      : `another clone works on ${heldPath}`,
    {
      facts: {
        target: path,
        heldDirectory: heldPath,
        holder: holder?.cloneId ?? null,
        pid: holder?.pid ?? null,
        ofInstance,
      },
      hint: ofInstance
        ? 'Ask again when that is done: `waitingFor` of that clone says so until then.'
        : 'Wait until that clone has ended, or cancel it.',
    },
  );
}
