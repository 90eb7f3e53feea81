/** What is to be done for each root of a copy: what is sent, what stays, and what goes. */
import { relative } from 'node:path';
import { isWithin } from '@pgcloned/process';
import type { ByteName, SourceEntry } from '@pgcloned/rsync';
import type { Ready } from '../ready.ts';
import type { TablespacePlace } from '../target/layout.ts';
import { markerPath } from '../target/marker.ts';
import { refuseIfTooLarge } from '../target/space.ts';
import { journalPath } from './journal.ts';
import { listLocal, type Reconciliation, reconcile } from './reconcile.ts';
import { type Root, selectRoot } from './roots.ts';
import { bytesOf } from './select.ts';
import type { SourceDirectory } from './transport.ts';
import type { CheckedRoot } from './verification.ts';

/** What a copy is made of. */
export interface Listed {
  readonly tablespaces: readonly TablespacePlace[];
  readonly roots: readonly Root[];
  /** What the source has, by root; null: nothing, for its directory is gone. */
  readonly listings: readonly (readonly SourceEntry[] | null)[];
}

export interface RootPlan extends SourceDirectory, CheckedRoot, Reconciliation {
  readonly directories: readonly ByteName[];
  readonly entries: ReadonlyMap<ByteName, SourceEntry>;
  /** What lies there now. */
  readonly localBytes: number;
}

/** @throws {CloneError} `SOURCE_LAYOUT_UNSUPPORTED`. */
export async function planCopy({
  ready,
  tablespaces,
  roots,
  listings,
  isVouched,
}: Listed & {
  readonly ready: Ready;
  /** Whether what lies here of a file is known to be what the source has. */
  readonly isVouched: (root: Root, entry: SourceEntry) => boolean;
}): Promise<readonly RootPlan[]> {
  const plans: RootPlan[] = [];
  for (const [index, root] of roots.entries()) {
    const listing = listings[index] ?? null;
    plans.push(
      await planRoot({
        ready,
        tablespaces,
        root,
        listing,
        isVouched: (entry) => isVouched(root, entry),
      }),
    );
  }
  return plans;
}

/** @throws {CloneError} `TARGET_NO_SPACE` if what is to come does not fit, by what is known before. */
export async function refuseIfFull(plans: readonly RootPlan[], { facts }: Ready): Promise<void> {
  await refuseIfTooLarge(
    plans.map(({ destination, kept, delta, whole, localBytes }) => ({
      path: destination,
      bytes: bytesOf(kept) + bytesOf(delta) + bytesOf(whole) - localBytes,
    })),
    facts.walSegmentBytes,
  );
}

async function planRoot({
  ready,
  tablespaces,
  root,
  listing,
  isVouched,
}: {
  readonly ready: Ready;
  readonly tablespaces: readonly TablespacePlace[];
  readonly root: Root;
  readonly listing: readonly SourceEntry[] | null;
  readonly isVouched: (entry: SourceEntry) => boolean;
}): Promise<RootPlan> {
  const { selection, tablespacesInside } = selectRoot({ ready, tablespaces, root, listing });
  const entries = new Map((listing ?? []).map((entry) => [entry.name, entry]));
  const local = await listLocal(root.destination);
  const spared = [...ownNamesIn(root, ready), ...tablespacesInside];
  const reconciliation = reconcile({
    selection,
    entries,
    local,
    isVouched,
    isSpared: (name) => spared.some((one) => isWithin(name, one)),
  });
  const localBytes = bytesOf([...local.values()]);
  return { ...root, ...reconciliation, directories: selection.directories, entries, localBytes };
}

/** What this run has there; that of a dead one goes. */
const ownNamesIn = ({ destination }: Root, { temporaryWalDirectory }: Ready): readonly ByteName[] =>
  [markerPath(destination, 'data'), journalPath(destination), temporaryWalDirectory].map((path) =>
    relative(destination, path),
  );
