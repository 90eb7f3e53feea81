import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatLsn, parseLsn, walBytesBetween } from '../src/index.ts';

const anyLsn = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

test('every LSN survives being printed and read', () => {
  fc.assert(
    fc.property(anyLsn, (lsn) => {
      expect(parseLsn(formatLsn(lsn))).toBe(lsn);
    }),
  );
});

test('an LSN is printed as PostgreSQL prints it', () => {
  expect(formatLsn(0n)).toBe('0/0');
  expect(formatLsn(0x16_b374_d848n)).toBe('16/B374D848');
  expect(formatLsn(0x1_0000_0000n)).toBe('1/0');
});

test('the distance between two positions is negative when they are in the wrong order', () => {
  expect(walBytesBetween({ from: '0/FFFFFFFF', to: '1/0' })).toBe(1n);
  expect(walBytesBetween({ from: '1/0', to: '0/FFFFFFFF' })).toBe(-1n);
});

test.each(['', '0', '0/', '/0', '0/G', '0/123456789', '0/0 ', '-1/0'])(
  '%j is not an LSN',
  (text) => {
    expect(() => parseLsn(text)).toThrow(RangeError);
  },
);
