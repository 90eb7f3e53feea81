/**
 * Names of WAL files, computed here and never asked from the server.
 *
 * A name is 8 digits of timeline, then the number of the segment in two groups of 8 digits. `pg_walfile_name()` is of no
 * use: it raises on a standby, and at a boundary it names the previous segment up to 16 and the next one from 17 on
 * (R3.6). The two ways of looking at a boundary have two names here: a stream *begins* in `segmentName`, and what ends
 * at an LSN was last written in the final entry of `segmentsBetween`.
 */
import { formatLsn, parseLsn } from './lsn.ts';

export interface WalPosition {
  readonly timeline: number;
  readonly lsn: string;
  /** `wal_segment_size` of the cluster, in bytes. */
  readonly segmentBytes: number;
}

/** The file that holds the byte at `lsn`; at a boundary, the segment that begins there. */
export function segmentName({ timeline, lsn, segmentBytes }: WalPosition): string {
  return nameOf(timeline, parseLsn(lsn) / BigInt(segmentBytes), BigInt(segmentBytes));
}

/** Where the segment that holds the byte at `lsn` begins. */
export function segmentStart({
  lsn,
  segmentBytes,
}: {
  readonly lsn: string;
  readonly segmentBytes: number;
}): string {
  const position = parseLsn(lsn);
  return formatLsn(position - (position % BigInt(segmentBytes)));
}

/**
 * Every file that holds a byte of [startLsn, endLsn), in order. An `endLsn` on a boundary does not need the segment that
 * begins there (R3.5). Empty if `endLsn` does not lie after `startLsn`.
 */
export function segmentsBetween({
  timeline,
  startLsn,
  endLsn,
  segmentBytes,
}: {
  readonly timeline: number;
  readonly startLsn: string;
  readonly endLsn: string;
  readonly segmentBytes: number;
}): readonly string[] {
  const size = BigInt(segmentBytes);
  const start = parseLsn(startLsn);
  const end = parseLsn(endLsn);
  if (end <= start) return [];
  const first = start / size;
  const last = (end - 1n) / size;
  return Array.from({ length: Number(last - first) + 1 }, (_, offset) =>
    nameOf(timeline, first + BigInt(offset), size),
  );
}

const SEGMENT_NAME = /^([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})$/;

/** Where the segment of this file name begins, or null if it is not the name of a complete segment. */
export function segmentStartOfName(name: string, segmentBytes: number): bigint | null {
  const [, , high, low] = SEGMENT_NAME.exec(name) ?? [];
  if (high === undefined || low === undefined) return null;
  const size = BigInt(segmentBytes);
  const number = BigInt(`0x${high}`) * segmentsPerGroup(size) + BigInt(`0x${low}`);
  return number * size;
}

function nameOf(timeline: number, number: bigint, size: bigint): string {
  const perGroup = segmentsPerGroup(size);
  return [BigInt(timeline), number / perGroup, number % perGroup]
    .map((part) => part.toString(16).toUpperCase().padStart(8, '0'))
    .join('');
}

/** The second group of a name counts 4 GiB of WAL, whatever the size of a segment. */
function segmentsPerGroup(size: bigint): bigint {
  return 2n ** 32n / size;
}
