/**
 * The checksum of a page, and what a page of a copy is worth (R8.2).
 *
 * A page holds 32 columns of 32-bit words. Each column has a sum of its own, begun with a number of its own: independent
 * multiplications, of which a processor does several at a time. That is why the columns are walked in groups whose
 * sums fit into registers, and not row by row.
 */
import { endianness } from 'node:os';

const COLUMNS = 32;
const PRIME = 16_777_619;

/** Where each column begins; a part of the algorithm. */
const OFFSETS = Int32Array.of(
  ...[0x5b1f36e9, 0xb8525960, 0x02ab50aa, 0x1de66d2a, 0x79ff467a, 0x9bb9f8a3, 0x217e7cd2],
  ...[0x83e13d2c, 0xf8d4474f, 0xe39eb970, 0x42c6ae16, 0x993216fa, 0x7b093b5d, 0x98daff3c],
  ...[0xf718902a, 0x0b1c9cdb, 0xe58f764b, 0x187636bc, 0x5d7b3bb1, 0xe73de7de, 0x92bec979],
  ...[0xcca6c0b2, 0x304a0979, 0x85aa43d4, 0x783125bb, 0x6ca8eaa2, 0xe407eac6, 0x4b5cfc3e],
  ...[0x9fbf8c76, 0x15ca20be, 0xf2ca9fd3, 0x959bd756],
);

/** The word that holds the checksum in its lower half, and the one that holds `pd_upper` in its upper half. */
const CHECKSUM_WORD = 2;
const UPPER_WORD = 3;

export interface PageVerdict {
  /** All of it is zero: nobody has written it yet. */
  readonly isNew: boolean;
  readonly isSound: boolean;
  /** When it was last changed, if it is sound. */
  readonly lsn: bigint;
}

/**
 * Judges one page.
 *
 * @param words The memory in which it lies, as the words of this machine.
 * @param o.at The index of its first word.
 * @param o.block Its number in the relation, which is not that in its file: a page in the wrong place is not sound.
 */
export function judgePage(
  words: Int32Array,
  o: { readonly at: number; readonly pageBytes: number; readonly block: number },
): PageVerdict {
  const { at } = o;
  const end = at + o.pageBytes / 4;
  const lsn = (BigInt((words[at] ?? 0) >>> 0) << 32n) | BigInt((words[at + 1] ?? 0) >>> 0);
  if ((words[at + UPPER_WORD] ?? 0) >>> 16 === 0) {
    const isNew = isZero(words, at, end);
    return { isNew, isSound: isNew, lsn };
  }
  const stored = (words[at + CHECKSUM_WORD] ?? 0) & 0xffff;
  return { isNew: false, isSound: checksum(words, at, end, o.block) === stored, lsn };
}

/** Only of little-endian machines the words are understood, and so is the control file. */
export const canJudgePages = endianness() === 'LE';

function isZero(words: Int32Array, at: number, end: number): boolean {
  for (let index = at; index < end; index += 1) if (words[index] !== 0) return false;
  return true;
}

function checksum(words: Int32Array, at: number, end: number, block: number): number {
  const kept = words[at + CHECKSUM_WORD] ?? 0;
  words[at + CHECKSUM_WORD] = kept & ~0xffff;
  let folded = block;
  for (let column = 0; column < COLUMNS; column += 4) folded ^= sumOfFour(words, at, end, column);
  words[at + CHECKSUM_WORD] = kept;
  return ((folded >>> 0) % 65_535) + 1;
}

function sumOfFour(words: Int32Array, at: number, end: number, column: number): number {
  let a = OFFSETS[column] as number;
  let b = OFFSETS[column + 1] as number;
  let c = OFFSETS[column + 2] as number;
  let d = OFFSETS[column + 3] as number;
  for (let index = at + column; index < end; index += COLUMNS) {
    a ^= words[index] as number;
    b ^= words[index + 1] as number;
    c ^= words[index + 2] as number;
    d ^= words[index + 3] as number;
    a = Math.imul(a, PRIME) ^ (a >>> 17);
    b = Math.imul(b, PRIME) ^ (b >>> 17);
    c = Math.imul(c, PRIME) ^ (c >>> 17);
    d = Math.imul(d, PRIME) ^ (d >>> 17);
  }
  return finish(a) ^ finish(b) ^ finish(c) ^ finish(d);
}

/** Two more rounds with nothing, which spread the last word over all bits. */
function finish(sum: number): number {
  const once = Math.imul(sum, PRIME) ^ (sum >>> 17);
  return Math.imul(once, PRIME) ^ (once >>> 17);
}
