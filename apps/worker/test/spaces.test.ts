/** When what clones take is measured; the time is the test's. */
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Run } from '../src/run-journal.ts';
import { watchSpaces } from '../src/spaces.ts';
import { eventually, someClone } from './worker-parts.ts';

/** Longer than a figure is kept. */
const LATER_MS = 11 * 60_000;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

function runThatIs(state: Run['clone']['instance']['state']): Run {
  const clone = someClone();
  return { clone: { ...clone, instance: { ...clone.instance, state } } } as Run;
}

test('clones that have files are measured once, and again later', async () => {
  const runs = [runThatIs('running'), runThatIs('stopped'), runThatIs('removed')];
  const [running, stopped, removed] = runs.map(({ clone }) => clone.id);
  const told: string[] = [];
  let measured = 0;
  const ending = new AbortController();
  const spaces = watchSpaces({
    runs: () => runs,
    measure: async () => {
      measured += 1;
      return { ownBytes: measured, sharedBytes: 0 };
    },
    onMeasured: (id) => told.push(id),
    log: pino({ level: 'silent' }),
    signal: ending.signal,
  });

  await eventually(() => told.length === 2);
  vi.advanceTimersByTime(LATER_MS);
  await eventually(() => told.length === 4);
  ending.abort();
  await spaces.ended;

  expect(told).toEqual([running, stopped, running, stopped]);
  expect(spaces.of(stopped ?? '')).toEqual({ ownBytes: 4, sharedBytes: 0 });
  expect(spaces.of(removed ?? '')).toBeUndefined();
});

test('one that cannot be measured keeps no other from it, and has no figure', async () => {
  const runs = [runThatIs('stopped'), runThatIs('running')];
  const [broken, other] = runs.map(({ clone }) => clone.id);
  const ending = new AbortController();
  const spaces = watchSpaces({
    runs: () => runs,
    measure: async ({ clone }) => {
      if (clone.id === broken) throw new Error('the disk is broken');
      return { ownBytes: 1, sharedBytes: 2 };
    },
    onMeasured: () => {},
    log: pino({ level: 'silent' }),
    signal: ending.signal,
  });

  await eventually(() => spaces.of(other ?? '') !== undefined);
  ending.abort();
  await spaces.ended;

  expect(spaces.of(other ?? '')).toEqual({ ownBytes: 1, sharedBytes: 2 });
  expect(spaces.of(broken ?? '')).toBeNull();
});

test('what a clone took is forgotten with its files', async () => {
  const runs = [runThatIs('stopped')];
  const id = runs[0]?.clone.id ?? '';
  const ending = new AbortController();
  const spaces = watchSpaces({
    runs: () => runs,
    measure: async () => ({ ownBytes: 1, sharedBytes: 2 }),
    onMeasured: () => {},
    log: pino({ level: 'silent' }),
    signal: ending.signal,
  });
  await eventually(() => spaces.of(id) !== undefined);

  runs.splice(0, 1, {
    ...runs[0],
    clone: { ...runs[0]?.clone, instance: { state: 'removed' } },
  } as Run);

  await eventually(() => spaces.of(id) === undefined);
  ending.abort();
  await spaces.ended;
});
