/**
 * The file `postmaster.pid`: whether a server runs on a data directory, and where it listens.
 *
 * The file outlives a server that was killed, its pid may belong to another program by now, and a server may run as
 * another user. So a server counts as running if the shared memory that the file names has users, or if the pid is alive
 * and nothing proves that it is another program (R9.8). In doubt the answer is "running": whoever asks wants to write
 * there. A server in another container, with its own pids and shared memory, cannot be seen from here.
 */
import { readFile, rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { codeOf, isMissing } from '@pgcloned/process';

interface SharedMemory {
  readonly key: bigint;
  readonly id: bigint;
}

export interface PostmasterPid {
  readonly pid: number;
  readonly dataDirectory: string;
  /** When the process started, in whole seconds since 1970; up to a minute before `pg_postmaster_start_time()`. */
  readonly startedAtSeconds: number;
  /** Null while the server has not come so far. */
  readonly port: number | null;
  /** The first of its socket directories; null if it has none, or not yet. */
  readonly socketDirectory: string | null;
  /** The first of its TCP addresses as it is configured: `localhost`, `*`; null if it has none, or not yet. */
  readonly listenAddress: string | null;
  /** System V key and id of its shared memory. */
  readonly sharedMemory: SharedMemory | null;
  /** `starting`, `stopping`, `standby` (recovering, accepts no sessions) or `ready`. */
  readonly status: string | null;
}

/** @returns Null if these are not the lines of such a file, for example because it is being written. */
export function parsePostmasterPid(lines: readonly string[]): PostmasterPid | null {
  const [
    pid = '',
    dataDirectory = '',
    startedAt = '',
    port = '',
    socket = '',
    listen = '',
    memory = '',
    status = '',
  ] = lines;
  // A single-user server writes its pid with a minus sign.
  if (!/^-?[1-9]\d*$/.test(pid.trim()) || dataDirectory === '') return null;
  const [key, id] = memory.trim().split(/\s+/);
  return {
    pid: Math.abs(Number(pid)),
    dataDirectory,
    startedAtSeconds: Number(startedAt),
    port: /^\d+$/.test(port.trim()) ? Number(port) : null,
    socketDirectory: socket.trim() === '' ? null : socket,
    listenAddress: listen.trim() === '' ? null : listen.trim(),
    sharedMemory: key && id ? { key: systemV(key), id: systemV(id) } : null,
    status: status.trim() === '' ? null : status.trim(),
  };
}

/**
 * @returns What the file says, or null if no server runs on `dataDirectory`.
 * @throws {CloneError} `TARGET_NOT_WRITABLE` if the directory is another user's, so that it cannot be told.
 */
export async function isServerRunning(dataDirectory: string): Promise<PostmasterPid | null> {
  const content = await readFile(join(dataDirectory, 'postmaster.pid'), 'utf8').catch(
    nullIfMissing,
  );
  if (content === null) return null;
  const postmaster = parsePostmasterPid(content.split('\n'));
  if (postmaster === null) return null;
  const isOld = await isOfEarlierBoot(postmaster);
  if (await isSharedMemoryInUse(postmaster, isOld)) return postmaster;
  if (!isAlive(postmaster.pid)) return null;
  return (await isAnotherProgram(postmaster.pid, { dataDirectory, isOld })) ? null : postmaster;
}

/**
 * Removes the lock files of a server that is gone, where they would keep the next one from starting: after a restart of the
 * host, or of a container, its pid may belong to another program of ours, and PostgreSQL asks no further than that. Under
 * whatever keeps others from starting a server there meanwhile. Nothing to do if one runs.
 */
export async function removeStaleLockFiles(dataDirectory: string): Promise<void> {
  const file = join(dataDirectory, 'postmaster.pid');
  const content = await readFile(file, 'utf8').catch(nullIfMissing);
  const stale = parsePostmasterPid(content?.split('\n') ?? []);
  if (stale === null || !isAlive(stale.pid)) return;
  if ((await isServerRunning(dataDirectory)) !== null) return;
  const { pid, port, socketDirectory } = stale;
  if (port !== null && socketDirectory !== null) {
    const lock = join(resolve(dataDirectory, socketDirectory), `.s.PGSQL.${String(port)}.lock`);
    // Of another user, or gone: not that of the server that is gone.
    const owner = parsePostmasterPid((await readFile(lock, 'utf8').catch(() => '')).split('\n'));
    // Another server may have the port by now, and its socket the same name.
    if (owner?.pid === pid && owner.dataDirectory === stale.dataDirectory) await rm(lock);
  }
  if ((await readFile(file, 'utf8').catch(nullIfMissing)) === content) await rm(file);
}

/** A signal that may not be sent has a receiver. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return codeOf(error) === 'EPERM';
  }
}

/**
 * Whether the host, or the container that we run in, has started since. Only then what does not fit is what came later: else
 * it may be a server in a container, which has other pids and whose file we share.
 */
async function isOfEarlierBoot({ startedAtSeconds }: PostmasterPid): Promise<boolean> {
  try {
    const [init, table] = await Promise.all([
      readFile('/proc/1/stat', 'utf8'),
      readFile('/proc/stat', 'utf8'),
    ]);
    const bootedAtSeconds = Number(/^btime (\d+)$/m.exec(table)?.[1]);
    // Behind its name, which may hold anything, it is the twentieth, in hundredths of a second after the boot.
    const initTicks = Number(init.slice(init.lastIndexOf(')')).split(' ')[20]);
    return startedAtSeconds < bootedAtSeconds + initTicks / 100;
  } catch {
    // Hidden, or there is no /proc.
    return false;
  }
}

/**
 * A postmaster works in its data directory and never leaves it, and runs as its owner, or not at all. What may not be looked
 * at proves nothing.
 */
async function isAnotherProgram(
  pid: number,
  { dataDirectory, isOld }: { readonly dataDirectory: string; readonly isOld: boolean },
): Promise<boolean> {
  try {
    const ours = await stat(dataDirectory, { bigint: true });
    const status = await readFile(`/proc/${String(pid)}/status`, 'utf8');
    if (isOld && /^Uid:\s+(\d+)/m.exec(status)?.[1] !== String(ours.uid)) return true;
    // By inode: paths differ between mounts and mount namespaces.
    const theirs = await stat(`/proc/${String(pid)}/cwd`, { bigint: true });
    return theirs.ino !== ours.ino || theirs.dev !== ours.dev;
  } catch {
    // It ended in this moment, it is hidden, or there is no /proc.
    return false;
  }
}

/**
 * Backends that outlived their postmaster hold it, too, and may still write.
 *
 * The key is the inode of the data directory and ids begin anew with the host, so after a restart the segment of another
 * server may have both. Its maker is another process then.
 */
async function isSharedMemoryInUse(
  { pid, sharedMemory: segment }: PostmasterPid,
  isOld: boolean,
): Promise<boolean> {
  if (segment === null) return false;
  const table = await readFile('/proc/sysvipc/shm', 'utf8').catch(nullIfMissing);
  return (table ?? '').split('\n').some((line) => {
    const [key, id, , , maker, , users] = line.trim().split(/\s+/);
    if (!/^-?\d+$/.test(key ?? '') || key === undefined || id === undefined) return false;
    const isSame = systemV(key) === segment.key && systemV(id) === segment.id;
    return isSame && Number(users) > 0 && (!isOld || Number(maker) === pid);
  });
}

/** The kernel prints a key with a sign, PostgreSQL without. */
function systemV(digits: string): bigint {
  return BigInt.asIntN(32, BigInt(digits));
}

function nullIfMissing(error: unknown): null {
  const { code, path } = error as NodeJS.ErrnoException;
  if (isMissing(error)) return null;
  if (code !== 'EACCES') throw error;
  throw new CloneError('TARGET_NOT_WRITABLE', `${path ?? 'postmaster.pid'} may not be read`, {
    facts: { path: path ?? null },
    hint: 'Run pgcloned as the user that owns the data directory.',
    cause: error,
  });
}
