/**
 * Looks whether a source that was a standby still is one, as long as its backup depends on that (R3.7).
 *
 * Once the backup has ended a promotion is no concern of the clone: all WAL that it needs is of the old timeline and is kept
 * by the pin, and it follows to the new timeline like any other standby.
 */
import type { CloneError } from '@pgcloned/contract';
import { isInRecovery, promoted, type Session } from '@pgcloned/postgres';
import type { CloneRun } from './clone-run.ts';
import { repeat } from './repeat.ts';

/** What is copied in vain until it is noticed; the end of the backup would tell it all the same. */
const INTERVAL_MS = 1_000;

export interface PromotionWatch {
  /** From now on it may be promoted. */
  readonly end: () => Promise<void>;
}

/** Ends the attempt with `SOURCE_PROMOTED` within a second or two. */
export function watchPromotion(run: CloneRun, session: Session): PromotionWatch {
  const { promise: lost, resolve: resolveLost } = Promise.withResolvers<CloneError>();
  const unwatch = run.watch(lost);
  const repetition = repeat(
    INTERVAL_MS,
    async (signal) => {
      if (!(await isInRecovery(session, signal))) resolveLost(promoted(session));
    },
    // The loss of the session is told by itself.
    () => {},
  );
  const end = async () => {
    unwatch();
    await repetition.stop();
  };
  run.cleanup.always({
    what: 'watch over the role of the source',
    remedy: `kill ${String(process.pid)}`,
    undo: end,
  });
  return { end };
}
