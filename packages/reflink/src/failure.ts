/** Why files cannot share blocks, in words that say what to do. */
import { access, constants } from 'node:fs/promises';
import { dirname } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { codeOf, isDiskFull } from '@pgcloned/process';
import { filesystemOf } from './filesystem.ts';

/** What kernels answer to FICLONE where blocks cannot be shared; everything else is about these two files (R10.2). */
const REFUSALS = new Set(['ENOTSUP', 'EXDEV', 'EINVAL', 'ENOTTY', 'ENOSYS']);

const TO_SHARE =
  'Data directory and clone have to lie on one filesystem that shares blocks: XFS or btrfs.';

export function refusesToShare(error: unknown): boolean {
  return REFUSALS.has(codeOf(error) ?? '');
}

/**
 * What it means that `to` could not be made.
 *
 * @param to Its directory must exist.
 * @returns A `CloneError`, or the error itself if nobody outside can do anything about it.
 */
export async function explainFailure(
  error: unknown,
  { from, to }: { readonly from: string; readonly to: string },
): Promise<unknown> {
  const code = codeOf(error);
  if (refusesToShare(error)) return await explainRefusal(code ?? '', { from, to, cause: error });
  const facts = { from, to };
  if (isDiskFull(error)) {
    const isQuota = code === 'EDQUOT';
    const message = isQuota
      ? `a quota leaves no room for ${to}`
      : `there is no space left for ${to}`;
    return new CloneError('TARGET_NO_SPACE', message, {
      facts: { ...facts, reason: code },
      hint: isQuota
        ? 'Raise the quota, or remove what counts towards it: what is shared may count as if it were not.'
        : 'Make room on this filesystem: what is shared takes none, but its table of extents does. On btrfs it may be the metadata that is full, which `btrfs filesystem usage` shows and df does not.',
      cause: error,
    });
  }
  if (code === 'EEXIST') {
    return new CloneError('TARGET_NOT_EMPTY', `${to} exists already`, {
      facts,
      hint: 'Somebody else writes into this directory. Clone into one that nobody uses.',
      cause: error,
    });
  }
  if ((code === 'EACCES' || code === 'EPERM') && !(await isReadable(from))) {
    return new CloneError('SOURCE_RIGHTS_MISSING', `${from} cannot be read`, {
      facts: { from, reason: code },
      hint: 'Run pgcloned as the owner of the data directory.',
      cause: error,
    });
  }
  if (code === 'EROFS' || code === 'EACCES' || code === 'EPERM') {
    return new CloneError('TARGET_NOT_WRITABLE', `${to} cannot be made`, {
      facts: { ...facts, reason: code },
      hint:
        code === 'EROFS'
          ? 'Mount the filesystem read-write; the log of the kernel says why it is not.'
          : 'Let the user that pgcloned runs as write there.',
      cause: error,
    });
  }
  return error;
}

async function isReadable(path: string): Promise<boolean> {
  try {
    await access(path, constants.R_OK);
    return true;
  } catch {
    // Whatever the reason: it stands in the error that is explained here.
    return false;
  }
}

async function explainRefusal(
  reason: string,
  { from, to, cause }: { readonly from: string; readonly to: string; readonly cause: unknown },
): Promise<CloneError> {
  const source = await filesystemOf(dirname(from));
  const target = await filesystemOf(dirname(to));
  const [message, hint] = sentences(reason, source, target);
  return new CloneError('REFLINK_UNSUPPORTED', message, {
    facts: {
      from,
      to,
      reason,
      sourceFilesystem: source.type,
      sourceMountPoint: source.mountPoint,
      targetFilesystem: target.type,
      targetMountPoint: target.mountPoint,
    },
    hint,
    cause,
  });
}

type Place = Awaited<ReturnType<typeof filesystemOf>>;

function sentences(reason: string, source: Place, target: Place): [message: string, hint: string] {
  const there = `${target.type} on ${target.mountPoint}`;
  if (reason === 'EXDEV' && source.mountPoint !== target.mountPoint) {
    return [
      `files of ${source.type} on ${source.mountPoint} cannot share blocks with those of ${there}`,
      `${TO_SHARE} Choose a target below ${source.mountPoint}, or clone with method rsync.`,
    ];
  }
  if (reason === 'EINVAL' && target.type === 'btrfs') {
    return [
      `btrfs on ${target.mountPoint} does not share blocks of files with and without checksums`,
      'The filesystem was mounted with another nodatasum or nodatacow when the source was written: mount it as it was then.',
    ];
  }
  if (target.type === 'xfs') {
    return [
      `the files of ${there} do not share blocks`,
      'This XFS was made without them, as `xfs_info` says (reflink=0), or the files lie on its realtime device. Move the data to one made by mkfs.xfs -m reflink=1.',
    ];
  }
  return [
    `the files of ${there} do not share blocks`,
    `${TO_SHARE} Elsewhere, clone with method rsync.`,
  ];
}
