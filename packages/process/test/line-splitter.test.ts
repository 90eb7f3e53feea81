import fc from 'fast-check';
import { expect, test } from 'vitest';
import { splitLines } from '../src/line-splitter.ts';

function linesOf(chunks: readonly Buffer[]): string[] {
  const lines: string[] = [];
  const splitter = splitLines('utf8', (line) => lines.push(line));
  for (const chunk of chunks) splitter.push(chunk);
  splitter.end();
  return lines;
}

test('the lines do not depend on how the stream was cut into pieces', () => {
  const text = fc
    .array(fc.constantFrom('a', 'é', '🐘', '\u2028', '\r', '\n', '\r\n'), { maxLength: 30 })
    .map((parts) => Buffer.from(parts.join('')));
  const cuts = fc.array(fc.nat({ max: 120 }), { maxLength: 10 });

  fc.assert(
    fc.property(text, cuts, (bytes, positions) => {
      const edges = [0, ...positions.toSorted((a, b) => a - b), bytes.length];
      const pieces = edges.slice(1).map((edge, index) => bytes.subarray(edges[index], edge));

      const expected = bytes.toString().split(/\r\n|\n|\r/);
      if (expected.at(-1) === '') expected.pop();
      expect(linesOf(pieces)).toEqual(expected);
    }),
  );
});

test('a line without an end is handed on in pieces instead of growing in memory', () => {
  const lines = linesOf(Array.from({ length: 5 }, () => Buffer.alloc(40_000, 'x')));

  expect(lines.length).toBeGreaterThan(2);
  expect(lines.join('')).toBe('x'.repeat(200_000));
});
