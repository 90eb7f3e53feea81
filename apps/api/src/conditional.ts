/** Conditional and patient reads: `ETag`, `If-None-Match` (RFC 9110) and `Prefer: wait` (RFC 7240). */
import type { Clone } from '@pgcloned/contract';
import { versionOf } from '@pgcloned/queue';

/** Proxies give up on a request after a minute; long before that a caller asks again at no cost. */
const WAIT_SECONDS_MAX = 50;

/** Changes with all that the record says, also with what was computed for it, such as `contact`. */
export function entityTag(clone: Clone): string {
  return `"${versionOf(clone)}"`;
}

/** Whether the caller has the representation with this tag already. */
export function isKnown(tag: string, ifNoneMatch: string | undefined): boolean {
  if (ifNoneMatch === undefined) return false;
  const tags = ifNoneMatch.split(',').map((known) => known.trim().replace(/^W\//, ''));
  return tags.includes(tag) || tags.includes('*');
}

/** How long the caller would like us to wait, at most what we grant; 0 without such a wish. */
export function waitSecondsOf(prefer: string | undefined): number {
  const [, seconds] = /(?:^|[,;\s])wait\s*=\s*"?(\d{1,6})/i.exec(prefer ?? '') ?? [];
  return Math.min(Number(seconds ?? 0), WAIT_SECONDS_MAX);
}
