import fc from 'fast-check';
import { expect, test } from 'vitest';
import { describeExit, quoteForShell, runProcess } from '../src/index.ts';

const { signal } = new AbortController();

test('any text reaches a program through a real shell as one word', async () => {
  const word = fc.oneof(
    fc.string({ unit: 'grapheme' }),
    fc.string({ unit: fc.constantFrom(...' \'"\\$`\n\t*?[]{}()<>|&;!#~=%-a') }),
  );
  const words = fc.array(
    word.filter((text) => !text.includes('\0')),
    { maxLength: 20 },
  );

  await fc.assert(
    fc.asyncProperty(words, async (texts) => {
      const line = `printf '%s\\0' first ${texts.map(quoteForShell).join(' ')}`;
      const { stdout } = await runProcess({ file: 'sh', args: ['-c', line], env: {} }, { signal });

      expect(stdout.toString().split('\0')).toEqual(['first', ...texts, '']);
    }),
    { numRuns: 50 },
  );
});

test('a word that looks like an assignment is still a word', async () => {
  const run = runProcess(
    { file: 'sh', args: ['-c', quoteForShell('a=b')], env: {} },
    { signal, accept: [127] },
  );

  await expect(run).resolves.toMatchObject({ status: 127 });
});

test('what no shell can pass on is refused', () => {
  expect(() => quoteForShell('a\0b')).toThrow(RangeError);
});

test('plain words stay readable', () => {
  expect(quoteForShell('/var/lib/postgresql/15/main')).toBe('/var/lib/postgresql/15/main');
  expect(quoteForShell('')).toBe(`''`);
});

test('an end is described by its signal, its status, or neither', () => {
  expect(describeExit({ status: 2, signal: null })).toBe('exit status 2');
  expect(describeExit({ status: null, signal: 'SIGINT' })).toBe('signal SIGINT');
  expect(describeExit({ status: null, signal: null })).toBe('no exit status');
});
