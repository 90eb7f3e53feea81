import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatTablespaceMap, parseTablespaceMap } from '../src/index.ts';

const anyLocation = fc
  .uint8Array({ minLength: 1, maxLength: 60 })
  .map((bytes) => Buffer.from(bytes.map((byte) => byte || 1)).toString('latin1'));
const nastyLocation = fc
  .string({ unit: fc.constantFrom('\\', '\n', '\r', ' ', '/', 'a', '\xff'), minLength: 1 })
  .map((text) => `/${text}`);
const anyEntry = fc.record({
  oid: fc.integer({ min: 1, max: 2 ** 32 - 1 }).map(String),
  location: fc.oneof(anyLocation, nastyLocation),
});

test('locations of any bytes survive being written and read', () => {
  fc.assert(
    fc.property(fc.array(anyEntry), (entries) => {
      expect(parseTablespaceMap(formatTablespaceMap(entries))).toEqual(entries);
    }),
  );
});

test('a backslash, a line feed and a carriage return are escaped, a blank is not', () => {
  const map = formatTablespaceMap([{ oid: '16384', location: '/a\\b\nc\rd e ' }]);

  expect(map.toString('latin1')).toBe('16384 /a\\\\b\\\nc\\\rd e \n');
});

test('a leading blank belongs to the location', () => {
  expect(parseTablespaceMap(Buffer.from('1  /a\n'))).toEqual([{ oid: '1', location: ' /a' }]);
});

test('no tablespaces make an empty map', () => {
  expect(formatTablespaceMap([])).toHaveLength(0);
  expect(parseTablespaceMap(Buffer.alloc(0))).toEqual([]);
});

test.each(['1 /a', '1 \n', 'x /a\n', '1 /a\n2 /b', '1 /a\\\n'])('%j is refused', (text) => {
  expect(() => parseTablespaceMap(Buffer.from(text))).toThrow(RangeError);
});
