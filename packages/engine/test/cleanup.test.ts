import { CloneError } from '@pgcloned/contract';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { withCleanup } from '../src/cleanup.ts';

const step = (name: string, ran: string[], fails = false) => ({
  what: name,
  remedy: `remove ${name}`,
  undo: async () => {
    await Promise.resolve();
    ran.push(name);
    if (fails) throw new Error(`${name} is stuck`);
  },
});

afterEach(() => {
  vi.restoreAllMocks();
});

describe('cleanup', () => {
  test('runs in reverse order, and after a success without the steps for failures', async () => {
    const ran: string[] = [];

    const result = await withCleanup(
      async (cleanup) => {
        cleanup.always(step('first', ran));
        cleanup.onFailure(step('copy', ran));
        cleanup.always(step('last', ran));
        return await Promise.resolve('done');
      },
      () => {},
    );

    expect(result).toBe('done');
    expect(ran).toEqual(['last', 'first']);
  });

  test('after a failure runs all steps, tells them the error, and throws that error', async () => {
    const failure = new CloneError('CANCELLED', 'stop');
    const told: unknown[] = [];

    const cloning = withCleanup(
      async (cleanup) => {
        cleanup.onFailure({
          what: 'copy',
          remedy: '',
          undo: async (_signal, error) => {
            await Promise.resolve(told.push(error));
          },
        });
        return await Promise.reject(failure);
      },
      () => {},
    );

    await expect(cloning).rejects.toBe(failure);
    expect(told).toEqual([failure]);
  });

  test('a step that fails becomes a leftover and stops no other', async () => {
    const ran: string[] = [];
    const leftovers: string[] = [];

    await withCleanup(
      async (cleanup) => {
        cleanup.always(step('first', ran));
        cleanup.always(step('stuck', ran, true));
        await Promise.resolve();
      },
      ({ what, remedy }) => leftovers.push(`${what}: ${remedy}`),
    );

    expect(ran).toEqual(['stuck', 'first']);
    expect(leftovers).toEqual(['stuck: remove stuck']);
  });

  test.each([
    ['that hangs is given up at its limit', {}, ['locks'], ['files']],
    ['without a limit is waited for before the next', { unlimited: true }, ['files', 'locks'], []],
  ] as const)('a step %s', async (_case, limit, ranInOrder, leftBehind) => {
    const ran: string[] = [];
    const leftovers: string[] = [];
    const expiry = new AbortController();
    vi.spyOn(AbortSignal, 'timeout').mockReturnValue(expiry.signal);
    const removal = Promise.withResolvers<void>();

    const cleaning = withCleanup(
      async (cleanup) => {
        cleanup.always(step('locks', ran));
        cleanup.always({
          ...step('files', ran),
          ...limit,
          undo: async () => {
            expiry.abort(new Error('too late'));
            await removal.promise;
            ran.push('files');
          },
        });
        await Promise.resolve();
      },
      ({ what }) => leftovers.push(what),
    );
    setImmediate(() => {
      if ('unlimited' in limit) removal.resolve();
    });
    await cleaning;

    expect(ran).toEqual(ranInOrder);
    expect(leftovers).toEqual(leftBehind);
  });
});
