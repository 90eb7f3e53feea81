/**
 * What a WAL segment says of itself: the header of its first page (R10.5).
 *
 * A file of pg_wal may carry the name of a segment and hold the contents of another: the server makes new ones of old ones
 * by giving them another name.
 */
import { formatLsn } from './lsn.ts';

export interface SegmentHeader {
  /** Where the first page begins. */
  readonly lsn: string;
  /** Of the first page: that before a switch in the middle of the segment is another one. */
  readonly timeline: number;
  readonly systemIdentifier: string;
  readonly segmentBytes: number;
}

export const SEGMENT_HEADER_BYTES = 40;

/** The first page of a segment has the long header. */
const LONG_HEADER = 0x0002;

/** @returns Null if these bytes do not begin a segment. */
export function parseSegmentHeader(bytes: Buffer): SegmentHeader | null {
  if (bytes.length < SEGMENT_HEADER_BYTES) return null;
  if ((bytes.readUInt16LE(2) & LONG_HEADER) === 0) return null;
  return {
    timeline: bytes.readUInt32LE(4),
    lsn: formatLsn(bytes.readBigUInt64LE(8)),
    systemIdentifier: bytes.readBigUInt64LE(24).toString(),
    segmentBytes: bytes.readUInt32LE(32),
  };
}
