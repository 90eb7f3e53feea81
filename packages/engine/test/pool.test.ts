/** The pool with a transfer of our own making: what it does when batches break off, change, or cannot be sent. */
import { CloneError } from '@pgcloned/contract';
import { describe, expect, test } from 'vitest';
import { type Batch, queueBatches } from '../src/copy/batches.ts';
import { copyAll, type PoolOptions } from '../src/copy/pool.ts';

const files = (count: number) =>
  Array.from({ length: count }, (_, index) => ({ name: String(index), bytes: 2 ** 27 }));
const outcome = ({ bytes }: Batch, again: readonly string[] = []) => ({
  bytes,
  literalBytes: bytes,
  again,
});

async function copy(
  count: number,
  transfer: PoolOptions['transfer'],
  {
    signal = new AbortController().signal,
    workers = 2,
    admit = async () => await Promise.resolve(new AbortController().signal),
  }: Partial<Pick<PoolOptions, 'signal' | 'workers' | 'admit'>> = {},
) {
  const copied = { bytes: 0, files: 0 };
  await copyAll(queueBatches([files(count)], { workers }), {
    workers,
    admit,
    transfer,
    signal,
    log: () => {},
    copied: (step) => {
      copied.bytes += step.bytes;
      copied.files += step.files;
    },
  });
  return { copied };
}

describe('the pool', () => {
  test('sends every batch and counts what was copied', async () => {
    const { copied } = await copy(10, async (batch, { onBytes }) => {
      onBytes(batch.bytes);
      return await Promise.resolve(outcome(batch));
    });

    expect(copied).toEqual({ bytes: 10 * 2 ** 27, files: 10 });
  });

  test('sends a batch again that broke off, and does not count its bytes twice', async () => {
    const repeats: (string | null)[] = [];

    const { copied } = await copy(
      1,
      async (batch, { onBytes, repeat }) => {
        repeats.push(repeat);
        onBytes(100);
        if (repeats.length < 3) throw new CloneError('SOURCE_LOST', 'connection reset');
        return await Promise.resolve(outcome(batch));
      },
      { workers: 1 },
    );

    expect(repeats).toEqual([null, 'broke-off', 'broke-off']);
    expect(copied.bytes).toBe(2 ** 27);
  });

  test('takes a batch back when it is told to, which costs no try however often, and counts its bytes once', async () => {
    const repeats: (string | null)[] = [];
    let halt = new AbortController();

    const { copied } = await copy(
      1,
      async (batch, { onBytes, repeat, signal }) => {
        repeats.push(repeat);
        onBytes(100);
        if (repeats.length === 10) return await Promise.resolve(outcome(batch));
        halt.abort();
        return await Promise.reject(
          signal.aborted ? (signal.reason as Error) : new Error('it was not told to stop'),
        );
      },
      {
        workers: 1,
        admit: async () => {
          halt = new AbortController();
          return await Promise.resolve(halt.signal);
        },
      },
    );

    expect(repeats).toEqual([null, ...Array.from({ length: 9 }, () => 'broke-off')]);
    expect(copied).toEqual({ bytes: 2 ** 27, files: 1 });
  });

  test('sends files again that changed while they were read, and takes them as they are in the end', async () => {
    const sent: (readonly string[])[] = [];

    const { copied } = await copy(
      2,
      async (batch, { onBytes, repeat }) => {
        if (batch.names.includes('1')) sent.push(batch.names);
        onBytes(batch.names.length * 2 ** 27);
        expect(repeat).toBe(batch.bytes === 0 ? 'changed' : null);
        return await Promise.resolve(outcome(batch, batch.names.includes('1') ? ['1'] : []));
      },
      { workers: 1 },
    );

    expect(sent).toHaveLength(5);
    expect(sent.slice(1)).toEqual(Array.from({ length: 4 }, () => ['1']));
    expect(copied).toEqual({ bytes: 2 * 2 ** 27, files: 2 });
  });

  test('gives up at an error that will not go away, after the other workers have stopped', async () => {
    let running = 0;
    const failure = new CloneError('TRANSFER_FAILED', 'permission denied');

    const copying = copy(8, async (_batch, { signal }) => {
      running += 1;
      try {
        if (running === 2) throw failure;
        const aborted = Promise.withResolvers<never>();
        signal.addEventListener('abort', () => {
          aborted.reject(signal.reason as Error);
        });
        return await aborted.promise;
      } finally {
        running -= 1;
      }
    });

    await expect(copying).rejects.toBe(failure);
    expect(running).toBe(0);
  });

  test('ends with the reason of its signal', async () => {
    const controller = new AbortController();
    const reason = new CloneError('CANCELLED', 'stop');

    const copying = copy(
      8,
      async () => {
        controller.abort(reason);
        throw new CloneError('SOURCE_LOST', 'rsync was stopped');
      },
      { signal: controller.signal },
    );

    await expect(copying).rejects.toBe(reason);
  });
});
