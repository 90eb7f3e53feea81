/**
 * Which failures another attempt may overcome by itself, and how often it is tried.
 *
 * What somebody has to mend first is not tried again: a closed port looks the same a minute later. Nor is what our own
 * side decided (a cancel, a stop, a deadline), nor anything after the clone was published.
 */
import type { CloneError, ErrorCode } from '@pgcloned/contract';

const MAY_PASS: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'SOURCE_LOST',
  'SOURCE_UNREACHABLE',
  'SOURCE_CHANGED',
  'SOURCE_NO_WAL_SENDER',
  'SSH_UNREACHABLE',
  'STALLED',
  'WAL_RECEIVER_FAILED',
  'WAL_REMOVED',
  'WAL_INCOMPLETE',
]);

/** With the pauses below they span five minutes: a restart of the source or a switch, not an outage of a night. */
const PAUSES_MS = [500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 60_000, 60_000];

export interface RetryBudget {
  /** How long to wait before the next attempt, in milliseconds; null: there is none. */
  readonly pauseAfter: (failure: CloneError) => number | null;
}

export function startRetryBudget(): RetryBudget {
  const pauses = [...PAUSES_MS];
  return {
    pauseAfter: ({ code, phase }) =>
      MAY_PASS.has(code) && phase !== 'start-replica' ? (pauses.shift() ?? null) : null,
  };
}
