/**
 * What is told of a clone although it can be made, with the commands that mend it.
 *
 * What rules a clone out is an error of the catalogue. A notice does not, and has a code of its own: a promise as well.
 */
import type { ErrorFacts } from './errors.ts';
import type { Remedy } from './remedy.ts';

/** How much it matters: a clone warns of a `warning`, and keeps an `info` to itself. */
export const NOTICES = {
  ARCHIVER_FAILING: 'warning',
  COLLATION_DIFFERS: 'warning',
  COLLATION_STALE: 'warning',
  FEW_WAL_SENDERS: 'warning',
  HOST_KEY_UNCHECKED: 'warning',
  LIBRARY_MISSING: 'warning',
  LOCALE_MISSING: 'warning',
  NO_SLOT_FREE: 'warning',
  NOT_CHECKED: 'info',
  OLD_CONTENTS_LOST: 'warning',
  REFLINK_FALLBACK: 'warning',
  REPLICA_HAS_NO_WAY: 'warning',
  RSYNC_VULNERABLE: 'warning',
  SLOT_TIMEOUT_SHORT: 'warning',
  SOURCE_FALLBACK: 'warning',
  SSLMODE_NOT_IN_TUNNEL: 'warning',
  STANDBY_SYNCHRONOUS: 'warning',
  TABLESPACES_SHARED: 'warning',
  TIMELINE_UNKNOWN: 'warning',
  WAL_LIMIT_LOW: 'warning',
} as const satisfies Record<string, 'warning' | 'info'>;

export type NoticeCode = keyof typeof NOTICES;

export interface Notice {
  readonly code: NoticeCode;
  readonly message: string;
  readonly facts?: ErrorFacts;
  readonly hint?: string;
  /** In the order in which they are to be applied. */
  readonly remedies?: readonly Remedy[];
}
