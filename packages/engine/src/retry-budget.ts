/**
 * Which failures another attempt may overcome by itself, and how often it is tried.
 *
 * What somebody has to mend first is not tried again: a closed port looks the same a minute later. Nor is what our own
 * side decided (a cancel, a stop, a deadline), nor anything after the clone was published.
 *
 * The pauses begin anew whenever an attempt got further than all before, which is told by what was still missing of the
 * copy: it falls from attempt to attempt of a clone that gets on, however much the source grows meanwhile, and cannot fall
 * below nothing. So a copy of hours outlives any number of short outages, and one that never gets further ends.
 */
import type { CloneError, ErrorCode } from '@pgcloned/contract';
import type { CloneObserver } from './observer.ts';
import type { SourceRole } from './plan.ts';

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

/**
 * What somebody has to mend where it never worked, but passes by itself where it did: while the host of the source boots,
 * and while children of a killed worker still hold a lock.
 */
const MAY_PASS_WHERE_IT_WORKED: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'SOURCE_MISMATCH',
  'SSH_AUTHENTICATION_FAILED',
  'REMOTE_COMMAND_FAILED',
  'RSYNCD_FAILED',
  'CONTROL_FILE_INVALID',
  'TARGET_BUSY',
]);

/** With the pauses below they span five minutes: a restart of the source or a switch, not an outage of a night. */
const PAUSES_MS = [500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 60_000, 60_000];

export interface RetryBudget {
  /**
   * What the clone was begun from; null: nobody knows yet. One that was begun from a primary waits out a failover: the
   * standby that its address leads to then is about to be promoted. One that was begun from a standby was to spare the
   * primary, so that it is for the caller to decide what follows.
   */
  readonly begunFrom: () => SourceRole | null;
  /** Sees through it how far the attempt gets; everything is passed on. */
  readonly watch: (observer: CloneObserver) => CloneObserver;
  /** How long to wait before the next attempt, in milliseconds; null: there is none. */
  readonly pauseAfter: (failure: CloneError) => number | null;
}

/**
 * @param o.isResumed Whether an attempt was made before, by a worker that has ended.
 * @param o.begunFrom What that one was begun from, if it is known.
 * @param o.picksAgain Whether each attempt picks among several servers: then a promoted standby is no question for the caller.
 */
export function startRetryBudget({
  isResumed,
  begunFrom: begunBefore,
  picksAgain,
}: {
  readonly isResumed: boolean;
  readonly begunFrom: SourceRole | null;
  readonly picksAgain: boolean;
}): RetryBudget {
  let hasWorked = isResumed;
  let begunFrom = begunBefore;
  let isPublished = false;
  let pauses = [...PAUSES_MS];
  let missingBytes = Number.POSITIVE_INFINITY;
  let leastMissingBytes = Number.POSITIVE_INFINITY;
  return {
    begunFrom: () => begunFrom,
    watch: (observer) => {
      missingBytes = Number.POSITIVE_INFINITY;
      return {
        ...observer,
        begunFrom: (role) => {
          begunFrom ??= role;
          observer.begunFrom(begunFrom);
        },
        copyPlanned: (plan) => {
          missingBytes = plan.bytesTotal;
          observer.copyPlanned(plan);
        },
        copied: (step) => {
          missingBytes -= step.bytes;
          hasWorked ||= step.worker !== null && step.bytes > 0;
          observer.copied(step);
        },
        published: () => {
          isPublished = true;
          observer.published();
        },
      };
    },
    pauseAfter: ({ code }) => {
      const mayPass =
        MAY_PASS.has(code) ||
        (hasWorked && MAY_PASS_WHERE_IT_WORKED.has(code)) ||
        ((begunFrom === 'primary' || picksAgain) && code === 'SOURCE_PROMOTED');
      if (isPublished || !mayPass) return null;
      hasWorked = true;
      // A file that grew since it was listed takes the sum beyond the total.
      const missingNow = Math.max(0, missingBytes);
      if (missingNow < leastMissingBytes) {
        leastMissingBytes = missingNow;
        pauses = [...PAUSES_MS];
      }
      return pauses.shift() ?? null;
    },
  };
}
