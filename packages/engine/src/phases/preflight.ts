/**
 * Phase 1 of 8: is a clone possible, and may it be made?
 *
 * Promises: nothing is changed on either side. When it returns, source and target are known and fit, the directories of
 * the target are locked, and the control connection and the backup session are open. The target comes first: a clone
 * that may not be written needs no source. What is checked stands in `preflight/checks.ts`.
 */
import { NOTICES, toCloneError } from '@pgcloned/contract';
import type { CloneRun } from '../clone-run.ts';
import { type Looked, runChecks, type Seen } from '../preflight/check.ts';
import { CHECKS } from '../preflight/checks.ts';
import { watchPromotion } from '../promotion-watch.ts';
import type { Ready } from '../ready.ts';

export async function preflight(run: CloneRun): Promise<Ready> {
  const seen = await runChecks(CHECKS, run, (stage) => {
    endAtError(run, stage);
  });
  run.signal.throwIfAborted();
  const { claim, ...ready } = seen as Seen;
  const promotion = ready.facts.inRecovery ? watchPromotion(run, ready.session) : null;
  return { ...claim, ...ready, promotion };
}

/** @throws The first error of the stage; the others are only logged. */
function endAtError({ warn, observer }: CloneRun, stage: readonly Looked[]): void {
  const errors = stage.flatMap((looked) => looked.errors);
  for (const error of errors.slice(1)) {
    const { message, code, hint } = toCloneError(error);
    observer.log('error', message, { code, hint });
  }
  if (errors.length > 0) throw errors[0];
  for (const { code, message } of stage.flatMap(({ notices }) => notices))
    if (NOTICES[code] === 'warning') warn(message);
}
