import { access } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { codeOf, isDiskFull } from '../src/system-error.ts';

/** As Node makes it of an error for which libuv has no name. */
const unnamed = (errno: number) =>
  Object.assign(new Error('copyfile'), { errno, code: `Unknown system error ${String(errno)}` });

test('an error of the kernel has its name, also where Node knows none', async () => {
  const missing = await access('/nowhere').catch((error: unknown) => error);

  expect(codeOf(missing)).toBe('ENOENT');
  expect(codeOf(unnamed(-122))).toBe('EDQUOT');
  expect(codeOf(unnamed(-117))).toBe('EUCLEAN');
  expect(codeOf(unnamed(-9999))).toBe('Unknown system error -9999');
  expect(codeOf(new Error('of ours'))).toBeNull();
  expect(codeOf('no error')).toBeNull();
});

test('a quota that is used up counts as want of space', () => {
  expect(isDiskFull(unnamed(-122))).toBe(true);
  expect(isDiskFull(Object.assign(new Error('write'), { errno: -28, code: 'ENOSPC' }))).toBe(true);
  expect(isDiskFull(Object.assign(new Error('write'), { errno: -5, code: 'EIO' }))).toBe(false);
});
