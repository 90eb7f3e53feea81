/** What every phase is given besides the results of those before it. */
import type { CloneError } from '@pgcloned/contract';
import type { Cleanup } from './cleanup.ts';
import type { CloneObserver } from './observer.ts';
import type { ClonePlan } from './plan.ts';
import type { LockSet } from './target/locks.ts';
import type { PortReservation } from './target/ports.ts';
import type { TransferControl } from './transfer-control.ts';

export interface CloneRun {
  readonly plan: ClonePlan;
  /** Workers and rate as they are now; those of the plan are how they began. */
  readonly transferControl: TransferControl;
  readonly observer: CloneObserver;
  /** Tells the user, now and in the result, of something that does not stop the clone. */
  readonly warn: (text: string) => void;
  /** Aborts when the caller cancels, when the deadline passes and when something watched is lost. */
  readonly signal: AbortSignal;
  /** Runs at the end of the attempt. */
  readonly cleanup: Cleanup;
  /** Runs at the end of the last attempt: what the next one can use. */
  readonly lasting: Cleanup;
  readonly locks: LockSet;
  readonly port: PortReservation;
  /** A preflight alone: nothing is changed, not even what an interrupted clone has left. */
  readonly looksOnly: boolean;
  /** Directories that an attempt of this clone has begun to fill. */
  readonly filled: Set<string>;
  /** Counts what went over the network, failed transfers included. */
  readonly sent: (wireBytes: number) => void;
  /** Slot, sessions and the remote directory are all called like this: `pgcloned_<id>_<attempt>`. */
  readonly name: string;
  /**
   * Ends the run with the error that `lost` brings: the connection, process or session behind it is gone.
   *
   * @returns Stop watching: from now on it may go.
   */
  readonly watch: (lost: Promise<CloneError>) => () => void;
}
