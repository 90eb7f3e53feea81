/**
 * What stands against a clone, or should be known before it: an error of the catalogue or a notice, and the commands that
 * mend it.
 *
 * An error rules the clone out and carries the code with which the clone would fail. A notice does not: its code is one
 * of those below. Both kinds of codes are promises.
 */
import type { ErrorFacts } from './errors.ts';
import type { Remedy } from './remedy.ts';

/** What is told although a clone can be made. */
export const NOTICE_CODES = [
  'ARCHIVER_FAILING',
  'COLLATION_DIFFERS',
  'COLLATION_STALE',
  'FEW_WAL_SENDERS',
  'HOST_KEY_UNCHECKED',
  'NOT_CHECKED',
  'NO_SLOT_FREE',
  'OLD_CONTENTS_LOST',
  'REPLICA_HAS_NO_WAY',
  'RSYNC_VULNERABLE',
  'SLOT_TIMEOUT_SHORT',
  'SOURCE_FALLBACK',
  'SSLMODE_NOT_IN_TUNNEL',
  'STANDBY_SYNCHRONOUS',
  'TABLESPACES_SHARED',
  'TIMELINE_UNKNOWN',
  'WAL_LIMIT_LOW',
] as const;

export type NoticeCode = (typeof NOTICE_CODES)[number];

/** Something that does not rule a clone out. */
export interface Notice {
  readonly code: NoticeCode;
  /** A sentence. */
  readonly message: string;
  readonly facts?: ErrorFacts;
  readonly hint?: string;
  /** In the order in which they are to be applied. */
  readonly remedies?: readonly Remedy[];
}
