import { expect, test } from 'vitest';
import { localRunner } from '../src/index.ts';

const { signal } = new AbortController();

test('a command of this host answers with its output and its exit status, whatever that is', async () => {
  let pieces = 0;
  const onOutput = () => {
    pieces += 1;
  };

  const answer = await localRunner.run('cat; echo oops >&2; exit 44', {
    ...{ signal, onOutput },
    input: 'what was said',
  });

  expect(answer).toMatchObject({ status: 44, signal: null, stderr: 'oops' });
  expect(answer.stdout.toString()).toBe('what was said');
  expect(pieces).toBeGreaterThan(0);
});

test('it cannot flood us', async () => {
  await expect(localRunner.run('yes', { signal, outputBytesMax: 1_000_000 })).rejects.toMatchObject(
    { code: 'PROCESS_FAILED' },
  );
});

test('it ends when nobody wants it any more, with the reason', async () => {
  const reason = new Error('cancelled');
  const aborting = new AbortController();
  const running = localRunner.run('echo begun; sleep 60', {
    signal: aborting.signal,
    onOutput: () => {
      aborting.abort(reason);
    },
  });

  await expect(running).rejects.toBe(reason);
});
