/** What an old rsync on either host comes to. */
import { expect, test } from 'vitest';
import { usableCompressions } from '../src/copy/usable-compressions.ts';

const both = { here: ['none', 'lz4', 'zstd'], there: ['none', 'lz4', 'zstd'] } as const;

test('auto does without what one of the hosts lacks', () => {
  const ask = { asked: 'auto', sourceHost: 'db1' } as const;

  expect(usableCompressions({ ...ask, ...both })).toEqual(['none', 'lz4', 'zstd']);
  expect(usableCompressions({ ...ask, ...both, there: ['none'] })).toEqual(['none']);
  expect(usableCompressions({ ...ask, ...both, here: ['none', 'zstd'] })).toEqual(['none', 'zstd']);
});

test.each([
  [{ ...both, there: ['none'] } as const, 'db1'],
  [{ ...both, here: ['none', 'lz4'] } as const, 'this host'],
])('one that was asked for by name is refused where it is missing: %j', (known, host) => {
  expect(() => usableCompressions({ asked: 'zstd', sourceHost: 'db1', ...known })).toThrow(
    expect.objectContaining({ code: 'TOOL_MISSING', facts: expect.objectContaining({ host }) }),
  );
});
