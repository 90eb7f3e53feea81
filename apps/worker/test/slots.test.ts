/** How many clones run at a time. */
import { expect, test } from 'vitest';
import { makeSlots } from '../src/slots.ts';

const never = new AbortController().signal;

test('a slot is given to who came first, once another is free', async () => {
  const slots = makeSlots(1);
  const first = await slots.take(never);
  const order: string[] = [];
  const second = slots.take(never).then((slot) => {
    order.push('second');
    return slot;
  });
  const third = slots.take(never).then((slot) => {
    order.push('third');
    return slot;
  });
  await Promise.resolve();
  expect(order).toEqual([]);

  first[Symbol.dispose]();
  (await second)[Symbol.dispose]();
  await third;

  expect(order).toEqual(['second', 'third']);
});

test('who gives up waiting takes no slot from the others', async () => {
  const slots = makeSlots(1);
  const first = await slots.take(never);
  const controller = new AbortController();
  const gone = slots.take(controller.signal);
  const next = slots.take(never);

  controller.abort(new Error('stopped'));
  await expect(gone).rejects.toThrow('stopped');
  first[Symbol.dispose]();

  (await next)[Symbol.dispose]();
  using _ = await slots.take(never);
  await expect(slots.take(controller.signal)).rejects.toThrow('stopped');
});
