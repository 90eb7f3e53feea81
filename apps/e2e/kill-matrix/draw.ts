/** Draws that a seed decides: the same seed, the same draws, on every machine. */
import { createHash } from 'node:crypto';

export interface Draw {
  /** From 0 to 1, without 1. */
  readonly share: () => number;
  readonly pick: <Item>(items: readonly Item[]) => Item;
  readonly shuffle: <Item>(items: readonly Item[]) => readonly Item[];
}

export function drawFrom(seed: string): Draw {
  let drawn = 0;
  const share = () => {
    drawn += 1;
    const hash = createHash('sha256')
      .update(`${seed} ${String(drawn)}`)
      .digest();
    return hash.readUInt32BE(0) / 2 ** 32;
  };
  return {
    share,
    pick: <Item>(items: readonly Item[]) => {
      const item = items[Math.floor(share() * items.length)];
      if (item === undefined) throw new Error('nothing to draw from');
      return item;
    },
    shuffle: (items) =>
      items
        .map((item) => ({ item, order: share() }))
        .toSorted((a, b) => a.order - b.order)
        .map(({ item }) => item),
  };
}
