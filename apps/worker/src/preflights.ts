/** The preflights that callers wait for: a few at a time, and none outlives the worker. */
import { CloneError, type CloneSpec, type PreflightReport } from '@pgcloned/contract';
import type { runPreflight } from '@pgcloned/engine';
import { type HostConfiguration, planClone } from './clone-plan.ts';
import type { RunJournal } from './run-journal.ts';

/** Each opens connections to a source and fetches some files; beside them clones go on. */
const PREFLIGHTS_MAX = 4;

export interface Preflights extends AsyncDisposable {
  /** @throws {CloneError} `RATE_LIMITED`, `SOURCE_UNKNOWN`, `WORKER_STOPPED`, and what the engine throws. */
  readonly look: (spec: CloneSpec, id: string) => Promise<PreflightReport>;
}

/** @param journal Of the clones of this host. */
export function openPreflights(
  host: HostConfiguration,
  journal: Pick<RunJournal, 'read'>,
  look: typeof runPreflight,
): Preflights {
  const stopping = new AbortController();
  const running = new Set<Promise<PreflightReport>>();
  return {
    look: async (spec, id) => {
      stopping.signal.throwIfAborted();
      if (running.size >= PREFLIGHTS_MAX) {
        throw new CloneError('RATE_LIMITED', 'too many preflights at a time on this host', {
          facts: { limit: PREFLIGHTS_MAX },
          hint: 'Ask again when another one has ended.',
        });
      }
      const report = planClone({ id, attempt: 1, spec, resetOf: null }, host, journal).then(
        async (plan) => await look(plan, { signal: stopping.signal }),
      );
      running.add(report);
      try {
        return await report;
      } finally {
        running.delete(report);
      }
    },
    [Symbol.asyncDispose]: async () => {
      stopping.abort(
        new CloneError('WORKER_STOPPED', 'the worker was stopped', { hint: 'Ask again.' }),
      );
      await Promise.allSettled(running);
    },
  };
}
