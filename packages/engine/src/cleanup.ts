/**
 * Undo steps that run in reverse order, whatever happened in between.
 *
 * `always` is for what must be as before in every case (slots, sessions, remote directories), `onFailure` for what only
 * a success may keep (the copy). What is done on another host is registered first and done then, because the answer may
 * never come although the deed was done; for a handle of our own there is nothing to undo before we have it.
 *
 * A step that fails neither stops the others nor hides the error of the clone: it becomes a leftover with the command
 * that removes it by hand.
 */
import { once } from 'node:events';

/** Enough for a slow host; a dead one must not keep the other steps waiting. */
const STEP_TIMEOUT_MS = 30_000;

interface Step {
  /** What stays behind if this fails: `replication slot x on db1:5432`. */
  readonly what: string;
  /** The command that removes it by hand. */
  readonly remedy: string;
  /**
   * Takes as long as it takes: what is removed or renamed here must not go on beside the next clone of the directory,
   * whose files it would hit. Terabytes take minutes.
   */
  readonly unlimited?: true;
}

interface AlwaysStep extends Step {
  /** `signal` is the step's own time limit: that of the clone may be aborted already. */
  readonly undo: (signal: AbortSignal) => Promise<void>;
}

interface FailureStep extends Step {
  readonly undo: (signal: AbortSignal, error: unknown) => Promise<void>;
}

export interface Cleanup {
  readonly always: (step: AlwaysStep) => void;
  readonly onFailure: (step: FailureStep) => void;
}

/**
 * Runs `body`, then the registered steps, and settles as `body` did.
 *
 * @param onLeftover Called for each failed step before the returned promise settles.
 */
export async function withCleanup<Result>(
  body: (cleanup: Cleanup) => Promise<Result>,
  onLeftover: (step: Step, error: unknown) => void,
): Promise<Result> {
  const steps: { readonly step: FailureStep; readonly onFailureOnly: boolean }[] = [];
  let failure: { readonly error: unknown } | null = null;
  try {
    return await body({
      always: (step) => steps.push({ step, onFailureOnly: false }),
      onFailure: (step) => steps.push({ step, onFailureOnly: true }),
    });
  } catch (error) {
    failure = { error };
    throw error;
  } finally {
    for (const { step, onFailureOnly } of steps.toReversed()) {
      if (onFailureOnly && failure === null) continue;
      try {
        const undo = async (signal: AbortSignal) => {
          await step.undo(signal, failure?.error);
        };
        await (step.unlimited === true ? undo(new AbortController().signal) : withTimeLimit(undo));
      } catch (error) {
        onLeftover(step, error);
      }
    }
  }
}

/** Gives up waiting at the limit even if the step ignores its signal. */
async function withTimeLimit(undo: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const signal = AbortSignal.timeout(STEP_TIMEOUT_MS);
  const done = new AbortController();
  const expired = once(signal, 'abort', { signal: done.signal }).then(
    () => {
      signal.throwIfAborted();
    },
    () => undefined,
  );
  try {
    await Promise.race([undo(signal), expired]);
  } finally {
    done.abort();
  }
}
