/**
 * What the engine tells whoever started it. It never prints and knows no Redis: the worker turns these calls into the
 * record, `pgcloned run` into a progress bar.
 *
 * The calls come as fast as things happen; an observer that publishes does so at its own pace.
 */
import type {
  CloneError,
  Compression,
  ErrorFacts,
  Instance,
  Leftover,
  LogLevel,
  PhaseName,
  PhaseState,
} from '@pgcloned/contract';
import type { SourceRole } from './plan.ts';
import type { FilledDirectory } from './target/prepare.ts';

export interface CloneObserver {
  phaseStarted(name: PhaseName): void;
  phaseEnded(name: PhaseName, state: Extract<PhaseState, 'done' | 'failed' | 'skipped'>): void;
  /** An attempt was broken off by something that may pass; the next one begins after a pause, and builds upon it. */
  interrupted(next: {
    readonly attempt: number;
    readonly error: CloneError;
    readonly pauseMs: number;
  }): void;
  /** What the first attempt that knew its source copies, told by each: a clone that goes on elsewhere has to know it. */
  begunFrom(role: SourceRole): void;
  /** What the clone waits for until it goes on by itself, in words; null: it goes on. */
  waiting(reason: string | null): void;
  copyPlanned(plan: {
    readonly bytesTotal: number;
    readonly filesTotal: number;
    /** What need not be sent, as far as it is known before. */
    readonly keptBytes: number;
    readonly workers: number;
  }): void;
  /** So many are at work from now on. */
  workersChanged(workers: number): void;
  /** What was copied since the last call; `bytes` is negative where a batch that failed is sent again. */
  copied(step: {
    /** Null: here before any worker began. */
    readonly worker: number | null;
    readonly bytes: number;
    readonly files: number;
  }): void;
  /** So many bytes more need not be sent: of files whose differences were sent since the last call. */
  kept(bytes: number): void;
  /** What most files are compressed with on their way, from now on. */
  compression(compression: Compression): void;
  /** What went over the network since the last call. */
  sent(wireBytes: number): void;
  /** The clone now fills this directory: whoever puts away what a killed engine left has to know it. */
  filling(directory: FilledDirectory): void;
  wal(positions: { readonly startLsn?: string; readonly receivedLsn?: string }): void;
  /** Something the user should know although the clone goes on. */
  warning(text: string): void;
  log(level: LogLevel, message: string, fields?: ErrorFacts): void;
  instance(change: Partial<Instance>): void;
  /** The point of no return: from now on the directory holds a clone that can be started. */
  published(): void;
  leftover(leftover: Leftover): void;
  /** A later attempt has removed what was told of as a leftover, by what it was called; nothing, if it was not. */
  putAway(what: string): void;
}
