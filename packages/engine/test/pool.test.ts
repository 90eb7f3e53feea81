/** The pool with a transfer of our own making: what it does when batches break off, change, or cannot be sent. */
import { once } from 'node:events';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { CloneError } from '@pgcloned/contract';
import { unlessAborted } from '@pgcloned/process';
import { describe, expect, test } from 'vitest';
import { type Batch, queueBatches } from '../src/copy/batches.ts';
import { copyAll, type PoolOptions } from '../src/copy/pool.ts';
import { controlTransfer, type TransferControl, workersOf } from '../src/transfer-control.ts';

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
    admit = async () => await Promise.resolve([]),
    control = controlTransfer({ workers, maxRate: null }),
  }: Partial<
    Pick<PoolOptions, 'signal' | 'admit'> & { workers: number; control: TransferControl }
  > = {},
) {
  const copied = { bytes: 0, files: 0 };
  const now = () => workersOf(control.limits());
  await copyAll(queueBatches([files(count)], { workers: now }), {
    workers: now,
    onWorkersChange: control.onChange,
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
          return await Promise.resolve([halt.signal]);
        },
      },
    );

    expect(repeats).toEqual([null, ...Array.from({ length: 9 }, () => 'broke-off')]);
    expect(copied).toEqual({ bytes: 2 ** 27, files: 1 });
  });

  test('takes a batch back also when whoever has told it so is gone and forgotten', async () => {
    setFlagsFromString('--expose-gc');
    const forget = runInNewContext('gc') as () => void;
    let halt: AbortController | null = null;
    let tries = 0;

    const { copied } = await copy(
      1,
      async (batch, { signal }) => {
        tries += 1;
        if (tries === 2) return outcome(batch);
        const aborted = once(signal, 'abort');
        halt?.abort(new Error('not now'));
        halt = null;
        await aborted;
        await nextTurn();
        forget();
        return await Promise.reject(signal.reason as Error);
      },
      {
        workers: 1,
        admit: async () => {
          halt = new AbortController();
          return await Promise.resolve([new AbortController().signal, halt.signal]);
        },
      },
    );

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

/** A transfer that ends when the test says so, or when its batch is taken away. */
function heldTransfers() {
  const running = new Map<Batch, PromiseWithResolvers<void>>();
  const begun: { readonly batch: Batch; readonly repeat: string | null }[] = [];
  let changed = Promise.withResolvers<void>();
  const tell = () => {
    changed.resolve();
    changed = Promise.withResolvers();
  };
  const transfer: PoolOptions['transfer'] = async (batch, { repeat, onBytes, signal }) => {
    const end = Promise.withResolvers<void>();
    running.set(batch, end);
    begun.push({ batch, repeat });
    tell();
    onBytes(100);
    try {
      await unlessAborted(end.promise, signal);
      return outcome(batch);
    } finally {
      running.delete(batch);
      tell();
    }
  };
  return {
    transfer,
    begun,
    running,
    until: async (count: number) => {
      while (running.size !== count) await changed.promise;
    },
    /** Whatever begins from now on ends by itself. */
    letGo: async (copying: Promise<unknown>) => {
      let isDone = false;
      void copying.finally(() => {
        isDone = true;
        tell();
      });
      while (!isDone) {
        for (const { resolve } of running.values()) resolve();
        await changed.promise;
      }
    },
  };
}

describe('a pool whose workers change', () => {
  test('sends more batches at a time at once when it grows', async () => {
    const control = controlTransfer({ workers: 1, maxRate: null });
    const held = heldTransfers();
    const copying = copy(60, held.transfer, { control });
    await held.until(1);

    control.change({ workers: 4, maxRate: null });
    await held.until(4);
    await held.letGo(copying);

    expect((await copying).copied).toEqual({ bytes: 60 * 2 ** 27, files: 60 });
    // There were enough for all, so the first had not to share.
    expect(held.begun.every(({ repeat }) => repeat === null)).toBe(true);
  });

  test('shares the last batch with those who come', async () => {
    const control = controlTransfer({ workers: 1, maxRate: null });
    const held = heldTransfers();
    const copying = copy(7, held.transfer, { control });
    await held.until(1);

    control.change({ workers: 4, maxRate: null });
    await held.until(4);
    await held.letGo(copying);

    expect((await copying).copied).toEqual({ bytes: 7 * 2 ** 27, files: 7 });
    expect(held.begun.map(({ batch, repeat }) => [batch.names, repeat])).toEqual([
      [['0', '1', '2', '3', '4', '5', '6'], null],
      [['0', '4'], 'broke-off'],
      [['1', '5'], 'broke-off'],
      [['2', '6'], 'broke-off'],
      [['3'], 'broke-off'],
    ]);
  });

  test('does not share what is a single file', async () => {
    const control = controlTransfer({ workers: 1, maxRate: null });
    const held = heldTransfers();
    const copying = copy(1, held.transfer, { control });
    await held.until(1);

    control.change({ workers: 4, maxRate: null });
    await held.letGo(copying);

    expect((await copying).copied).toEqual({ bytes: 2 ** 27, files: 1 });
    expect(held.begun).toHaveLength(1);
  });

  test('leaves the last batch alone when nothing but the rate changes', async () => {
    const control = controlTransfer({ workers: 2, maxRate: null });
    const held = heldTransfers();
    const copying = copy(9, held.transfer, { control });
    await held.until(2);
    const [last] = held.running.keys();
    const others = () => [...held.running].filter(([batch]) => batch !== last);
    while (others().length > 0) {
      for (const [, { resolve }] of others()) resolve();
      await nextTurn();
    }

    control.change({ workers: 2, maxRate: 10_000 });
    await nextTurn();

    expect([...held.running.keys()]).toEqual([last]);
    expect(last?.names.length).toBeGreaterThan(1);
    await held.letGo(copying);
    expect((await copying).copied).toEqual({ bytes: 9 * 2 ** 27, files: 9 });
    expect(held.begun.every(({ repeat }) => repeat === null)).toBe(true);
  });

  test('gives back at once what surplus workers have, and goes on with it as with what broke off', async () => {
    const control = controlTransfer({ workers: 4, maxRate: null });
    const held = heldTransfers();
    const copying = copy(30, held.transfer, { control });
    await held.until(4);
    const [first] = held.begun;

    control.change({ workers: 1, maxRate: null });
    await held.until(1);
    const [left] = held.running.keys();
    await held.letGo(copying);

    expect(left).toBe(first?.batch);
    expect((await copying).copied).toEqual({ bytes: 30 * 2 ** 27, files: 30 });
    const repeated = held.begun.filter(({ repeat }) => repeat !== null);
    expect(repeated).toEqual(
      held.begun.slice(1, 4).map(({ batch }) => ({ batch, repeat: 'broke-off' })),
    );
  });

  test('may change its mind however often, which costs no try', async () => {
    const control = controlTransfer({ workers: 3, maxRate: null });
    const held = heldTransfers();
    const copying = copy(30, held.transfer, { control });
    await held.until(3);

    for (let times = 0; times < 10; times += 1) {
      control.change({ workers: 1, maxRate: null });
      control.change({ workers: 3, maxRate: null });
      await held.until(1);
      await held.until(3);
    }
    await held.letGo(copying);

    expect((await copying).copied).toEqual({ bytes: 30 * 2 ** 27, files: 30 });
  });
});
