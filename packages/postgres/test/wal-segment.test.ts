import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatLsn, parseLsn, segmentName, segmentStart, segmentsBetween } from '../src/index.ts';
import { segmentStartOfName } from '../src/wal-segment.ts';

const MIB = 1024 * 1024;
const segmentBytes = 16 * MIB;

const anySize = fc.integer({ min: 0, max: 10 }).map((exponent) => MIB * 2 ** exponent);
const anyLsn = fc.bigInt({ min: 0n, max: 2n ** 62n }).map(formatLsn);

test('a segment has the name that PostgreSQL gives it', () => {
  expect(segmentName({ timeline: 1, lsn: '0/1000000', segmentBytes })).toBe(
    '000000010000000000000001',
  );
  expect(segmentName({ timeline: 17, lsn: '2A/FF123456', segmentBytes })).toBe(
    '000000110000002A000000FF',
  );
  expect(segmentName({ timeline: 1, lsn: '2A/FF123456', segmentBytes: 64 * MIB })).toBe(
    '000000010000002A0000003F',
  );
});

test('a name of any segment size leads back to where its segment begins', () => {
  fc.assert(
    fc.property(anyLsn, anySize, (lsn, size) => {
      const name = segmentName({ timeline: 3, lsn, segmentBytes: size });

      expect(segmentStartOfName(name, size)).toBe(
        parseLsn(segmentStart({ lsn, segmentBytes: size })),
      );
    }),
  );
});

test('a backup that ends on a boundary needs no segment that begins there', () => {
  const needed = segmentsBetween({
    timeline: 1,
    startLsn: '0/2000028',
    endLsn: '0/4000000',
    segmentBytes,
  });

  expect(needed).toEqual(['000000010000000000000002', '000000010000000000000003']);
});

test('a backup that ends one byte behind a boundary needs the segment of that byte', () => {
  const needed = segmentsBetween({
    timeline: 1,
    startLsn: '0/3FFFFFF',
    endLsn: '0/4000001',
    segmentBytes,
  });

  expect(needed).toEqual(['000000010000000000000003', '000000010000000000000004']);
});

test('segments run on over the end of a group of 4 GiB', () => {
  const needed = segmentsBetween({
    timeline: 1,
    startLsn: '0/FF000000',
    endLsn: '1/1',
    segmentBytes,
  });

  expect(needed).toEqual(['0000000100000000000000FF', '000000010000000100000000']);
});

test('every byte of the interval lies in exactly one of its segments', () => {
  fc.assert(
    fc.property(
      fc.bigInt({ min: 0n, max: 2n ** 40n }),
      fc.bigInt({ min: 1n, max: 2n ** 32n }),
      anySize,
      (start, length, size) => {
        const segments = segmentsBetween({
          timeline: 1,
          startLsn: formatLsn(start),
          endLsn: formatLsn(start + length),
          segmentBytes: size,
        });
        const starts = segments.map((name) => segmentStartOfName(name, size) ?? -1n);

        expect(starts[0]).toBeLessThanOrEqual(start);
        expect((starts.at(-1) ?? 0n) + BigInt(size)).toBeGreaterThanOrEqual(start + length);
        expect(starts.at(-1)).toBeLessThan(start + length);
        expect(new Set(starts).size).toBe(starts.length);
      },
    ),
    { numRuns: 50 },
  );
});

test('no time needs no segment', () => {
  expect(
    segmentsBetween({ timeline: 1, startLsn: '0/5000000', endLsn: '0/5000000', segmentBytes }),
  ).toEqual([]);
});

test.each(['000000010000000000000001.partial', '00000002.history', 'archive_status', 'lost'])(
  '%s is not the name of a complete segment',
  (name) => {
    expect(segmentStartOfName(name, segmentBytes)).toBeNull();
  },
);
