/**
 * Which directories a clone fills.
 *
 * A place is one of them: where it will lie, where it is built, and where what it replaces goes. Without `replace` a
 * place is built where it will lie, and with `resync` upon what lies there.
 */
import { access, constants, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { CloneSpec } from '@pgcloned/contract';
import { codeOf } from '@pgcloned/process';
import { resolveReal } from './guard.ts';
import type { DirectoryKind } from './marker.ts';

export interface Place {
  readonly kind: DirectoryKind;
  readonly final: string;
  readonly build: string;
  /** Where the present contents go at the swap; null: there are none. */
  readonly old: string | null;
  /** The present contents are brought up to date. They stay as they are until the copy begins. */
  readonly takesOver: boolean;
}

export interface TablespacePlace extends Place {
  readonly oid: string;
  /** The location on the source. */
  readonly source: string;
  /** The location here: the parent of the version directory. */
  readonly location: string;
}

/** Names beside a directory that belong to a clone of it all begin like this. */
export const besidePrefix = (path: string) => `${basename(path)}.pgcloned-`;

const buildPath = (path: string, cloneId: string) => `${path}.pgcloned-${cloneId}`;
/** What precedes the id of a clone in the name of what it has replaced. */
export const oldPrefix = (path: string) => `${path}.pgcloned-old-`;
const oldPath = (path: string, cloneId: string) => `${oldPrefix(path)}${cloneId}`;
export const swapJournalPath = (dataDirectory: string) => `${dataDirectory}.pgcloned-swap.json`;

/** A place that is built aside if there is something to replace, else where it will lie. */
export function makePlace(
  kind: DirectoryKind,
  final: string,
  { cloneId, replaces }: { readonly cloneId: string; readonly replaces: boolean },
): Place {
  return replaces
    ? {
        kind,
        final,
        build: buildPath(final, cloneId),
        old: oldPath(final, cloneId),
        takesOver: false,
      }
    : { kind, final, build: final, old: null, takesOver: false };
}

/** A place whose present contents are brought up to date. */
export function placeInUse(kind: DirectoryKind, final: string): Place {
  return { kind, final, build: final, old: null, takesOver: true };
}

/**
 * Where WAL is collected during the copy: on the filesystem of the final pg_wal, so that it is put in place by renames
 * (R4.10). A directory of the caller's choice gets a subdirectory: what lies in it is never touched.
 */
export async function temporaryWalPath(
  target: Pick<CloneSpec['target'], 'temporaryWalDirectory'>,
  wal: { readonly final: string; readonly build: string },
  cloneId: string,
): Promise<string> {
  if (target.temporaryWalDirectory !== null) {
    const { real } = await resolveReal(target.temporaryWalDirectory);
    return join(real, `pgcloned-wal-${cloneId}`);
  }
  const fitsBeside = !(await isMountPoint(wal.final)) && (await isWritable(dirname(wal.final)));
  return fitsBeside
    ? `${wal.final}.pgcloned-wal-${cloneId}`
    : join(wal.build, `pgcloned-wal-${cloneId}`);
}

/** Whether entries can be made in a directory; true if it is yet to be made. */
export async function isWritable(directory: string): Promise<boolean> {
  try {
    await access(directory, constants.W_OK | constants.X_OK);
    return true;
  } catch (error) {
    return codeOf(error) === 'ENOENT';
  }
}

/** Whether a filesystem of its own is mounted there; false if nothing is there. */
export async function isMountPoint(path: string): Promise<boolean> {
  const [here, above] = await Promise.all(
    [path, dirname(path)].map(async (one) => await stat(one).catch(() => null)),
  );
  return here != null && above != null && here.dev !== above.dev;
}
