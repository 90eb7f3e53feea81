/**
 * WAL positions (LSN) such as `16/B374D848`: bytes of WAL that the cluster has ever written, as two hexadecimal words.
 *
 * They are compared and subtracted as `bigint`, since a double cannot hold 64 bits, and are text everywhere else.
 */

const LSN = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/;
const LSN_MAX = 2n ** 64n - 1n;

/** @throws {RangeError} If `text` is not an LSN. PostgreSQL prints no other, so we have mangled it. */
export function parseLsn(text: string): bigint {
  const [, high, low] = LSN.exec(text) ?? [];
  if (high === undefined || low === undefined) throw new RangeError(`not an LSN: ${text}`);
  return (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`);
}

/** As PostgreSQL 15 to 18 print it: upper case, no leading zeros. */
export function formatLsn(lsn: bigint): string {
  if (lsn < 0n || lsn > LSN_MAX) throw new RangeError(`not an LSN: ${String(lsn)}`);
  return `${(lsn >> 32n).toString(16)}/${(lsn & 0xffff_ffffn).toString(16)}`.toUpperCase();
}

/** Bytes of WAL between two positions; negative if `to` lies before `from`. */
export function walBytesBetween({
  from,
  to,
}: {
  readonly from: string;
  readonly to: string;
}): bigint {
  return parseLsn(to) - parseLsn(from);
}
