/** Whatever the files are, the batches hold each of them once, and their sizes keep the limits. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Batch, queueBatches } from '../src/copy/batches.ts';

const files = fc.array(fc.nat({ max: 2 ** 30 }), { maxLength: 300 });

function drain(queue: ReturnType<typeof queueBatches>): readonly Batch[] {
  const batches: Batch[] = [];
  for (let batch = queue.next(); batch !== null; batch = queue.next()) batches.push(batch);
  return batches;
}

test('every file is in exactly one batch, together with files of its own root only', () => {
  fc.assert(
    fc.property(
      fc.array(files, { maxLength: 4 }),
      fc.integer({ min: 1, max: 8 }),
      (sizes, workers) => {
        const roots = sizes.map((bytes, root) =>
          bytes.map((one, index) => ({ name: `${String(root)}/${String(index)}`, bytes: one })),
        );

        const batches = drain(queueBatches(roots, { workers: () => workers }));

        const sent = batches.flatMap(({ names }) => names);
        expect(sent.toSorted()).toEqual(
          roots
            .flat()
            .map(({ name }) => name)
            .toSorted(),
        );
        for (const { root, names } of batches)
          expect(names.every((name) => name.startsWith(`${String(root)}/`))).toBe(true);
      },
    ),
  );
});

test('the largest files go first', () => {
  const bytes = [1, 500, 20].map((mega) => mega * 1024 ** 2);

  const [first] = drain(
    queueBatches([bytes.map((one) => ({ name: String(one), bytes: one }))], { workers: () => 1 }),
  );

  expect(first?.names[0]).toBe(String(500 * 1024 ** 2));
});

test('a batch is larger than 1 GB only if it is a single file', () => {
  fc.assert(
    fc.property(files, (sizes) => {
      const batches = drain(
        queueBatches([sizes.map((bytes, index) => ({ name: String(index), bytes }))], {
          workers: () => 1,
        }),
      );

      for (const { bytes, names } of batches)
        expect(bytes <= 1024 ** 3 || names.length === 1).toBe(true);
    }),
  );
});

test('nothing to copy is no batch', () => {
  expect(queueBatches([[], []], { workers: () => 4 }).next()).toBeNull();
});

test('the parts of a batch hold each of its files once, and none is larger than another by more than a file', () => {
  fc.assert(
    fc.property(files, fc.integer({ min: 2, max: 8 }), (sizes, parts) => {
      const queue = queueBatches([sizes.map((bytes, index) => ({ name: String(index), bytes }))], {
        workers: () => 1,
      });
      const batch = queue.next();
      if (batch === null) return;

      const cut = queue.split(batch, parts);

      expect(cut).toHaveLength(Math.min(parts, batch.names.length));
      expect(cut.flatMap(({ names }) => names).toSorted()).toEqual(batch.names.toSorted());
      expect(cut.reduce((sum, { bytes }) => sum + bytes, 0)).toBe(batch.bytes);
      const largest = sizes[Number(batch.names[0])] ?? 0;
      const bytes = cut.map((part) => part.bytes);
      expect(Math.max(...bytes) - Math.min(...bytes)).toBeLessThanOrEqual(largest);
    }),
  );
});

test('a sample is of files of middling size, and what is left is sent as ever', () => {
  const sizes = [1024, 700, 9, 8, 7, 6, 5, 0.1, 0.01].map((mega) => mega * 1024 ** 2);
  const files = sizes.map((bytes) => ({ name: String(bytes), bytes }));
  const queue = queueBatches([files, files.slice(2)], { workers: () => 2 });

  const sample = queue.sample(24 * 1024 ** 2, (root) => root === 1);

  expect(sample).toEqual({
    root: 1,
    names: [9, 8, 7].map((mega) => String(mega * 1024 ** 2)),
    bytes: 24 * 1024 ** 2,
  });
  expect(drain(queue).flatMap(({ names }) => names)).toHaveLength(2 * sizes.length - 2 - 3);
});

test('there is no sample where all files are large or tiny', () => {
  const files = [1000, ...Array.from({ length: 50 }, () => 0.1)].map((mega, index) => ({
    name: String(index),
    bytes: mega * 1024 ** 2,
  }));

  expect(queueBatches([files], { workers: () => 1 }).sample(16 * 1024 ** 2, () => true)).toBeNull();
});
