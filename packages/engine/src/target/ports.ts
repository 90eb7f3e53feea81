/**
 * The port of a clone, reserved among all clones of this machine.
 *
 * A file for each port, beside the locks, names the data directory that has it. It holds while the clone is being made, by
 * a lock, and afterwards as long as that directory carries the marker of its clone: one that is stopped keeps its port. So
 * whoever removes the directory need not give anything back, and where we do the file goes with it. A clone into the same
 * directory gets the same port again. Servers of others are seen only while they listen. A restart of the host forgets all
 * of this, and the worker reserves the ports of its clones anew.
 */
import { readdir, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { codeOf, type FileLock, lockFile, readPlainFile } from '@pgcloned/process';
import { findLockDirectory, takeCommonLock } from './locks.ts';
import { readMarker } from './marker.ts';

const PREFIX = 'pgcloned-port-';
const DISPOSE_MS_MAX = 10_000;

/** Held from the first attempt of a clone to its last. */
export interface PortReservation extends AsyncDisposable {
  /**
   * @param range From its first port to its last, both included.
   * @returns A port that nobody else has and nobody listens on; the same one when it is asked again. Null: there is none.
   */
  readonly pick: (range: PortRange, o: PickOptions) => Promise<number | null>;
}

interface PortRange {
  readonly first: number;
  readonly last: number;
}

export interface PickOptions {
  readonly dataDirectory: string;
  /** The port is that of the clone whoever listens there just now: nobody else shall be given it. Default: false. */
  readonly isAsked?: boolean;
  readonly signal: AbortSignal;
}

export function reservePort(cloneId: string): PortReservation {
  let held: Held | null = null;
  return {
    pick: async (range, { dataDirectory, isAsked = false, signal }) => {
      if (held !== null) return held.port;
      const directory = await findLockDirectory();
      await using _ = await takeCommonLock(directory, signal);
      for (const port of await portsFor(range, { directory, dataDirectory })) {
        const lock = await lockIfOurs(fileOf(directory, port), signal);
        if (lock === null) continue;
        const before = await readReservation(fileOf(directory, port));
        const reservation = {
          // Until ours takes the place of the one that is there, the port is that one's, also if we are killed.
          cloneIds: before === null ? [cloneId] : [cloneId, before.holder],
          ...{ dataDirectory, port },
        };
        if ((isAsked || (await isFree(port))) && (await write(lock, reservation))) {
          held = { ...reservation, lock };
          return port;
        }
        await lock[Symbol.asyncDispose]();
      }
      return null;
    },
    [Symbol.asyncDispose]: async () => {
      if (held !== null) await letGo(held);
    },
  };
}

/** Whether a port is reserved for what lies in the data directory. */
export async function hasReservedPort(dataDirectory: string): Promise<boolean> {
  const directory = await findLockDirectory();
  for (const name of await readdir(directory)) {
    if (!name.startsWith(PREFIX)) continue;
    if ((await readReservation(join(directory, name)))?.dataDirectory === dataDirectory)
      return true;
  }
  return false;
}

/** Of a clone that is there, and has the port by its configuration. Nothing to do if it is reserved already, for whomever. */
export async function reserveAgain(
  cloneId: string,
  { dataDirectory, port, signal }: PickOptions & { readonly port: number },
): Promise<void> {
  const directory = await findLockDirectory();
  await using _ = await takeCommonLock(directory, signal);
  const file = fileOf(directory, port);
  const lock = await lockIfOurs(file, signal);
  if (lock === null) return;
  await using _lock = lock;
  if ((await readReservation(file)) === null)
    await write(lock, { cloneIds: [cloneId], dataDirectory, port });
}

/** What was reserved for a data directory whose clone is gone. Whoever calls holds the lock on it. Never rejects. */
export async function forgetPorts(dataDirectory: string): Promise<void> {
  const isItsOwn = async (file: string) => {
    const reserved = await readReserved(file);
    return reserved?.dataDirectory === dataDirectory && (await holderOf(reserved)) === null;
  };
  try {
    const directory = await findLockDirectory();
    const found: string[] = [];
    for (const name of await readdir(directory)) {
      const file = join(directory, name);
      if (name.startsWith(PREFIX) && (await isItsOwn(file))) found.push(file);
    }
    // All others wait for the common lock, and need not while hundreds of files are read.
    if (found.length === 0) return;
    const signal = AbortSignal.timeout(DISPOSE_MS_MAX);
    await using _ = await takeCommonLock(directory, signal);
    for (const file of found) {
      await using lock = await lockIfOurs(file, signal);
      if (lock !== null && (await isItsOwn(file))) await rm(file, { force: true });
    }
  } catch {
    // A file that names no clone is in nobody's way.
  }
}

/** Tells which one would be had, and takes none. */
export function lookForPort(cloneId: string): PortReservation {
  return {
    pick: async (range, { dataDirectory, signal }) => {
      await using reservation = reservePort(cloneId);
      return await reservation.pick(range, { dataDirectory, signal });
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/** Whether nobody listens there. */
export async function isFree(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const server = createServer();
  server.once('error', () => {
    resolve(false);
  });
  server.listen({ port, host: '127.0.0.1', exclusive: true }, () => {
    server.close(() => {
      resolve(true);
    });
  });
  return await promise;
}

interface Reserved {
  /** Whichever of these lies in the directory has the port. */
  readonly cloneIds: readonly string[];
  readonly dataDirectory: string;
  readonly port: number;
}

interface Held extends Reserved {
  readonly lock: FileLock;
}

const fileOf = (directory: string, port: number) => join(directory, `${PREFIX}${String(port)}`);

/** In the order in which they are to be tried: the one that the directory has had comes first. */
async function portsFor(
  { first, last }: PortRange,
  { directory, dataDirectory }: { readonly directory: string; readonly dataDirectory: string },
): Promise<readonly number[]> {
  const all = Array.from({ length: last - first + 1 }, (_, index) => first + index);
  const reserved = await Promise.all(
    all.map(async (port) => ({ port, by: await readReservation(fileOf(directory, port)) })),
  );
  const ours = reserved.filter(({ by }) => by?.dataDirectory === dataDirectory);
  return [...ours, ...reserved.filter(({ by }) => by === null)].map(({ port }) => port);
}

/** The clone that is there and has the port, with its data directory, or null. */
async function readReservation(
  file: string,
): Promise<{ readonly holder: string; readonly dataDirectory: string } | null> {
  try {
    const reserved = await readReserved(file);
    if (reserved === null) return null;
    const holder = await holderOf(reserved);
    return holder === null ? null : { holder, dataDirectory: reserved.dataDirectory };
  } catch {
    // What stands there is not ours to read: then its listener tells.
    return null;
  }
}

/** Null: nobody has it, or what stands there is not ours to read. Then its lock and its listener tell. */
async function readReserved(file: string): Promise<Reserved | null> {
  try {
    const found = await readPlainFile(file);
    return found === null ? null : (JSON.parse(found.text) as Reserved);
  } catch {
    return null;
  }
}

async function holderOf({
  cloneIds,
  dataDirectory,
}: Pick<Reserved, 'cloneIds' | 'dataDirectory'>): Promise<string | null> {
  const marker = await readMarker(dataDirectory, 'data');
  return cloneIds.find((id) => id === marker?.cloneId) ?? null;
}

/** @returns Null if another clone that is being made holds it, or if the file is another user's. */
async function lockIfOurs(file: string, signal: AbortSignal): Promise<FileLock | null> {
  try {
    return await lockFile(file, { signal });
  } catch {
    signal.throwIfAborted();
    return null;
  }
}

/** @returns False if the file is another user's: then the port counts as theirs. */
async function write({ file }: FileLock, reserved: Reserved): Promise<boolean> {
  try {
    await file.truncate(0);
    await file.write(`${JSON.stringify(reserved)}\n`, 0);
    return true;
  } catch (error) {
    const code = codeOf(error);
    if (code !== 'EBADF' && code !== 'EINVAL') throw error;
    return false;
  }
}

/** The file stays for a clone that is there; else it goes while nobody can be about to lock it. */
async function letGo({ lock, ...reserved }: Held): Promise<void> {
  try {
    if ((await holderOf(reserved).catch(() => null)) !== null) return;
    const signal = AbortSignal.timeout(DISPOSE_MS_MAX);
    await using _ = await takeCommonLock(await findLockDirectory(), signal);
    await rm(lock.path, { force: true });
  } catch {
    // A disposer never throws, and a file that names no clone is in nobody's way.
  } finally {
    await lock[Symbol.asyncDispose]();
  }
}
