/** What the configuration of a clone calls it. What a server makes of the rest is shown end to end. */
import { expect, test } from 'vitest';
import type { ClonePlan } from '../src/plan.ts';
import { clusterNameOf } from '../src/replica/configure.ts';

test('a clone is called by its host and id, within the 63 bytes by which its source can find it', () => {
  const nameOn = (host: string) => {
    const spec = { target: { host }, replica: { clusterName: null } };
    return clusterNameOf({ plan: { id: `${'0'.repeat(24)}12345678`, spec } as ClonePlan });
  };

  expect(nameOn('db2')).toBe('db2-12345678');
  expect(nameOn('h'.repeat(63))).toBe(`${'h'.repeat(54)}-12345678`);
});
