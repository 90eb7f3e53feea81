/** Sizes (`200MB`, powers of 1024) and times (`90min`) as PostgreSQL writes them, for options and for people. */
import { CloneError } from './errors.ts';

const FACTORS: Readonly<Record<string, number>> = {
  B: 1,
  kB: 1024,
  MB: 1024 ** 2,
  GB: 1024 ** 3,
  TB: 1024 ** 4,
};

/**
 * @returns Bytes.
 * @throws {CloneError} `REQUEST_INVALID` unless `text` is a number with an optional unit B, kB, MB, GB or TB.
 */
export function parseBytes(text: string): number {
  const [, digits, unit = 'B'] = /^(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|TB)?$/.exec(text.trim()) ?? [];
  const bytes = Math.round(Number(digits) * (FACTORS[unit] ?? Number.NaN));
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new CloneError('REQUEST_INVALID', `not a size: ${text}`, {
    hint: 'Write a number with a unit of B, kB, MB, GB or TB, for example 200MB.',
  });
}

const SECONDS: Readonly<Record<string, number>> = { s: 1, min: 60, h: 3600, d: 86_400 };

/**
 * @returns Seconds.
 * @throws {CloneError} `REQUEST_INVALID` unless `text` is a whole number with an optional unit s, min, h or d.
 */
export function parseSeconds(text: string): number {
  const [, digits, unit = 's'] = /^(\d+)\s*(s|min|h|d)?$/.exec(text.trim()) ?? [];
  const seconds = Number(digits) * (SECONDS[unit] ?? Number.NaN);
  if (Number.isSafeInteger(seconds)) return seconds;
  throw new CloneError('REQUEST_INVALID', `not a time: ${text}`, {
    hint: 'Write a number with a unit of s, min, h or d, for example 90min.',
  });
}

/** Three or four significant digits and the largest unit that leaves at least 1: `3.42 GB`. */
export function formatBytes(bytes: number): string {
  const [unit, factor] = Object.entries(FACTORS).findLast(
    ([, candidate]) => bytes >= candidate,
  ) ?? ['B', 1];
  if (factor === 1) return `${String(bytes)} B`;
  const value = bytes / factor;
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
}
