/** What a broken filesystem answers, in words; full and read-only ones are played for real, end to end. */
import { CloneError } from '@pgcloned/contract';
import { expect, test } from 'vitest';
import { explainFilesystemFailure } from '../src/target/filesystem-failure.ts';

const where = { directories: ['/nowhere'], next: 'clone again' };

test.each([
  ['EIO', -5, 'EIO'],
  // Node knows no name for it.
  ['EUCLEAN', -117, 'Unknown system error -117'],
])(
  'a filesystem that answers %s is named as broken, and is not asked again',
  async (reason, errno, code) => {
    const error = Object.assign(new Error('copyfile'), { errno, code, path: '/a', dest: '/b/c' });

    expect(await explainFilesystemFailure(error, where)).toMatchObject({
      code: 'TRANSFER_FAILED',
      message: `a filesystem does not work: ${reason} at /b/c`,
      hint: expect.stringMatching(/dmesg.* mount it, then clone again\.$/),
      facts: { reason, file: '/b/c' },
    });
  },
);

test('an error that is about something else stays as it is', async () => {
  for (const error of [new Error('a bug'), new CloneError('STALLED', 'nothing moves')])
    expect(await explainFilesystemFailure(error, where)).toBe(error);
});
