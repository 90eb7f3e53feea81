import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatBytes, parseBytes } from '../src/index.ts';

test.each([
  ['0', 0],
  ['10000', 10_000],
  ['200MB', 209_715_200],
  [' 200 MB ', 209_715_200],
  ['1.5kB', 1536],
  ['2TB', 2_199_023_255_552],
])('%j are %i bytes', (text, bytes) => {
  expect(parseBytes(text)).toBe(bytes);
});

test.each(['', 'MB', '-1', '1e3', '10mb', '10KB', '10 MiB', '0x10', '1,5MB', '99999999TB', 'NaN'])(
  '%j is no size',
  (text) => {
    expect(() => parseBytes(text)).toThrow(expect.objectContaining({ code: 'REQUEST_INVALID' }));
  },
);

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.00 kB'],
  [1_023_590, '1000 kB'],
  [3_670_016, '3.50 MB'],
  [75 * 1024 ** 3, '75.0 GB'],
  [5000 * 1024 ** 4, '5000 TB'],
])('%i bytes are shown as %j', (bytes, text) => {
  expect(formatBytes(bytes)).toBe(text);
});

test('what is shown for a size can be read again, and is right within a hundredth', () => {
  fc.assert(
    fc.property(fc.nat({ max: 2 ** 52 }), (bytes) => {
      const shown = formatBytes(bytes);

      expect(shown).toMatch(/^\d+(\.\d+)? (B|kB|MB|GB|TB)$/);
      expect(Math.abs(parseBytes(shown) - bytes)).toBeLessThanOrEqual(bytes * 0.01);
    }),
  );
});
