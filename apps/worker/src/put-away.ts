/** Putting away what a worker that is gone has left of a clone, as far as that can be done from here. */
import { CloneError, type Leftover } from '@pgcloned/contract';
import type { SweepOptions, SweepReport, sweepClone } from '@pgcloned/engine';
import type { Logger } from 'pino';
import { type HostConfiguration, planClone } from './clone-plan.ts';
import type { Run, RunJournal } from './run-journal.ts';

/** Dropping a slot on a source that does not answer must not hold up the start of the worker. */
const SWEEP_MS_MAX = 30_000;

export interface PutAwayContext {
  readonly host: HostConfiguration;
  readonly journal: Pick<RunJournal, 'read'>;
  readonly sweepClone: typeof sweepClone;
  readonly log: Logger;
  /** Aborts when the start of the worker is given up. */
  readonly signal: AbortSignal;
}

/**
 * What could not be put away is among the leftovers.
 *
 * @throws The signal's reason if `signal` aborts.
 */
export async function putAway(
  { clone, filled }: Pick<Run, 'clone' | 'filled'>,
  becomes: SweepOptions['becomes'],
  { host, journal, log, signal, sweepClone }: PutAwayContext,
): Promise<SweepReport> {
  try {
    return await sweepClone(await planClone(clone, host, journal), {
      becomes,
      filled,
      signal: AbortSignal.any([signal, AbortSignal.timeout(SWEEP_MS_MAX)]),
    });
  } catch (error) {
    signal.throwIfAborted();
    // Another clone has the directory: it has put away what was there.
    if (error instanceof CloneError && error.code === 'TARGET_BUSY') {
      return { published: false, leftovers: [] };
    }
    log.error({ cloneId: clone.id, err: error }, 'could not put away what a dead clone left');
    return {
      published: false,
      leftovers: [leftoverOf(clone.spec.target.dataDirectory)],
    };
  }
}

function leftoverOf(dataDirectory: string): Leftover {
  return {
    what: `temporary directories of the clone beside ${dataDirectory}`,
    remedy: `Clone into ${dataDirectory} again: that puts away what is left.`,
  };
}
