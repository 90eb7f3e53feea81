/**
 * What a filesystem has made fail, as what it is: full, its quota used up, read-only or broken, with its name and what to do.
 *
 * Found out from the error, from the words of a server that ran here, and by asking the filesystem. Any other error
 * stays as it came, and so does one that tells this already.
 */
import { access, constants, statfs } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { CloneError, type ErrorCode, formatBytes } from '@pgcloned/contract';
import { codeOf, isDiskFull, quoteForShell } from '@pgcloned/process';
import { deepestExisting, filesystemOf } from './space.ts';

/** What fails because a server on the clone has failed, with its own words among the facts. */
const OF_A_SERVER_HERE: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'REPLICA_START_FAILED',
  'VERIFICATION_FAILED',
  'ON_READY_FAILED',
  'PROCESS_FAILED',
]);

/** In English, which a private server speaks. */
const NO_SPACE = /No space left on device|Disk quota exceeded/;
const NO_QUOTA = /Disk quota exceeded/;

/** With less a server that somebody else looks after could not even write down why it does not start. */
const LOG_BYTES_MIN = 1024 ** 2;

/** What a filesystem says that has shut itself down, or whose disk does not answer. */
const BROKEN: ReadonlySet<string> = new Set(['EIO', 'EUCLEAN', 'ENXIO', 'ESTALE']);

const BTRFS = 0x9123683e;
const XFS = 0x58465342;

interface Written {
  /** Of those on several filesystems the fullest counts. */
  readonly directories: readonly string[];
  /** What to do once it is mended. */
  readonly next: string;
}

export async function explainFilesystemFailure(error: unknown, o: Written): Promise<unknown> {
  // Not asked anything: it may answer nothing.
  const broken = explainBroken(error, o);
  if (broken !== null) return broken;
  try {
    return (await explainFull(error, o)) ?? (await explainReadOnly(error, o)) ?? error;
  } catch {
    // A filesystem that cannot be asked tells no more than the error.
    return error;
  }
}

async function explainFull(
  error: unknown,
  { directories, next }: Written,
): Promise<CloneError | null> {
  if (!(error instanceof CloneError)) {
    if (!isDiskFull(error)) return null;
    const { path } = error as NodeJS.ErrnoException;
    const full = await fullestOf(path === undefined ? directories : [path]);
    const reason = codeOf(error);
    const isQuota = reason === 'EDQUOT';
    const message = isQuota
      ? `a quota of the target is used up: ${leftOn(full)}`
      : `the target had no space left: ${formatBytes(full.freeBytes)} on ${full.path} now`;
    return new CloneError('TARGET_NO_SPACE', message, {
      facts: { reason, file: path ?? null, ...factsOf(full) },
      hint: remedy(full, { isQuota, next }),
      cause: error,
    });
  }
  const { code, message, facts, hint } = error;
  if ('freeBytes' in facts) return null;
  if (code !== 'TARGET_NO_SPACE' && !OF_A_SERVER_HERE.has(code)) return null;
  const full = await fullestOf(directories);
  const options = { facts: { ...facts, ...factsOf(full) }, cause: error };
  if (code === 'TARGET_NO_SPACE') {
    const isQuota = facts.reason === 'EDQUOT';
    return new CloneError(code, `${message}: ${leftOn(full)}`, {
      ...options,
      hint: isQuota || hint === null ? remedy(full, { isQuota, next }) : hint,
    });
  }
  const words = Object.values(facts).join('\n');
  const isMute = code === 'REPLICA_START_FAILED' && full.freeBytes < LOG_BYTES_MIN;
  if (!isMute && !NO_SPACE.test(words)) return null;
  const isQuota = NO_QUOTA.test(words);
  const reason = isQuota ? `a quota was used up` : 'for want of space';
  return new CloneError('TARGET_NO_SPACE', `${message}, ${reason}: ${leftOn(full)}`, {
    ...options,
    hint: remedy(full, { isQuota, next }),
  });
}

async function explainReadOnly(
  error: unknown,
  { directories, next }: Written,
): Promise<CloneError | null> {
  const isOurs = error instanceof CloneError;
  if (isOurs && !['PUBLISH_FAILED', 'TARGET_NOT_WRITABLE'].includes(error.code)) return null;
  if (isOurs && 'readOnlyFilesystem' in error.facts) return null;
  const reason = isOurs ? error.facts.reason : codeOf(error);
  for (const directory of directories) {
    const existing = await deepestExisting(directory);
    if (!(await isReadOnly(existing))) continue;
    const { path } = await filesystemOf(existing, 0);
    return new CloneError('TARGET_NOT_WRITABLE', `the filesystem ${path} is read-only by now`, {
      facts: { path: directory, directory: path, readOnlyFilesystem: true, reason: reason ?? null },
      hint: `See the log of the kernel (dmesg) for why; mount ${path} read-write, then ${next}.`,
      cause: error,
    });
  }
  return null;
}

/** A filesystem that has shut itself down, or lost its disk. */
export function explainBroken(error: unknown, { next }: Pick<Written, 'next'>): CloneError | null {
  const reason = codeOf(error);
  if (error instanceof CloneError || reason === null || !BROKEN.has(reason)) return null;
  const { path, dest } = error as NodeJS.ErrnoException & { readonly dest?: string };
  const file = dest ?? path ?? null;
  return new CloneError(
    'TRANSFER_FAILED',
    `a filesystem does not work: ${reason}${file === null ? '' : ` at ${file}`}`,
    {
      facts: { reason, file },
      hint: `See the log of the kernel (dmesg). Unmount the filesystem, check it and mount it, then ${next}.`,
      cause: error,
    },
  );
}

async function isReadOnly(directory: string): Promise<boolean> {
  try {
    await access(directory, constants.W_OK);
    return false;
  } catch (error) {
    return codeOf(error) === 'EROFS';
  }
}

interface Full {
  readonly path: string;
  readonly freeBytes: number;
  /** By its magic number. */
  readonly type: number;
}

async function fullestOf(directories: readonly string[]): Promise<Full> {
  const filesystems = await Promise.all(
    directories.map(async (directory) => await filesystemOf(directory, 0)),
  );
  const [fullest] = filesystems.toSorted((one, other) => one.freeBytes - other.freeBytes);
  if (fullest === undefined) throw new Error('no directory was written');
  const { path, freeBytes } = fullest;
  return { path, freeBytes, type: (await statfs(path)).type };
}

const factsOf = ({ path, freeBytes }: Full) => ({ path, freeBytes });

const leftOn = ({ path, freeBytes }: Full) => `${formatBytes(freeBytes)} left on ${path} now`;

/** Where nothing is free, room is missing; where much is, it is something else that is counted. */
function remedy(
  { path, type }: Full,
  { isQuota, next }: { readonly isQuota: boolean; readonly next: string },
): string {
  const place = quoteForShell(path);
  if (isQuota) {
    const whose = `of user ${userInfo().username}, its group, or the project or subvolume of the directory`;
    const shown =
      type === BTRFS
        ? `btrfs qgroup show -re ${place}`
        : type === XFS
          ? `xfs_quota -x -c 'report -ugp -h' ${place}`
          : 'repquota -augP';
    return `Raise the quota ${whose} on ${path}, which \`${shown}\` shows, or remove what counts towards it, then ${next}.`;
  }
  const also =
    type === BTRFS
      ? `its metadata and quotas count as well, see \`btrfs filesystem usage ${place}\` and \`btrfs qgroup show -re ${place}\``
      : 'its quotas and inodes count as well, see df -i';
  return `Make room on ${path} (${also}), then ${next}.`;
}
