/** How often a clone is tried again. */
import { CloneError, type ErrorCode } from '@pgcloned/contract';
import { describe, expect, test } from 'vitest';
import type { CloneObserver } from '../src/observer.ts';
import { startRetryBudget } from '../src/retry-budget.ts';

const observer = {
  copyPlanned: () => {},
  workersChanged: () => {},
  kept: () => {},
  copied: () => {},
  published: () => {},
  begunFrom: () => {},
} as unknown as CloneObserver;

const how = { isResumed: false, begunFrom: null, picksAgain: false } as const;

function failure(code: ErrorCode = 'SOURCE_LOST'): CloneError {
  return new CloneError(code, 'it broke off');
}

/** The failures of attempts that leave so much of so much missing, up to the one that ends the clone. */
function attemptsOf(missing: (attempt: number) => { readonly of: number; readonly bytes: number }) {
  const budget = startRetryBudget(how);
  for (let attempt = 1; attempt < 1_000; attempt += 1) {
    const watched = budget.watch(observer);
    const { of, bytes } = missing(attempt);
    watched.copyPlanned({ bytesTotal: of, filesTotal: 1, keptBytes: 0, workers: 1 });
    watched.copied({ worker: 0, bytes: of - bytes, files: 0 });
    if (budget.pauseAfter(failure()) === null) return attempt;
  }
  return Number.POSITIVE_INFINITY;
}

test('a clone that gets further with every attempt is tried for as long as it does', () => {
  const attempts = attemptsOf((attempt) => ({ of: 500, bytes: Math.max(0, 500 - attempt) }));

  expect(attempts).toBeGreaterThan(500);
  expect(attempts).toBeLessThan(520);
});

test.each([
  ['never gets anywhere', () => ({ of: 500, bytes: 500 })],
  [
    'has all, of a source that grows',
    (attempt: number) => ({ of: 500 + attempt * 10_000, bytes: 0 }),
  ],
])('a clone that %s ends after some attempts', (_, missing) => {
  expect(attemptsOf(missing)).toBe(11);
});

test.each<ErrorCode>(['TARGET_NO_SPACE', 'CANCELLED', 'WORKER_STOPPED', 'TARGET_OTHER_CLUSTER'])(
  '%s is not tried again',
  (code) => {
    expect(startRetryBudget({ ...how, isResumed: true }).pauseAfter(failure(code))).toBeNull();
  },
);

test('a promotion is waited out where a failover has led to the standby, and told where a standby was asked for', () => {
  const failover = startRetryBudget(how);
  failover.watch(observer).begunFrom('primary');
  failover.watch(observer).begunFrom('standby');
  const standby = startRetryBudget(how);
  standby.watch(observer).begunFrom('standby');
  const oneOfSeveral = startRetryBudget({ ...how, picksAgain: true });
  oneOfSeveral.watch(observer).begunFrom('standby');
  const resumed = startRetryBudget({ ...how, isResumed: true, begunFrom: 'primary' });
  resumed.watch(observer).begunFrom('standby');

  expect(failover.begunFrom()).toBe('primary');
  expect(failover.pauseAfter(failure('SOURCE_PROMOTED'))).not.toBeNull();
  expect(standby.pauseAfter(failure('SOURCE_PROMOTED'))).toBeNull();
  expect(oneOfSeveral.pauseAfter(failure('SOURCE_PROMOTED'))).not.toBeNull();
  expect(resumed.pauseAfter(failure('SOURCE_PROMOTED'))).not.toBeNull();
});

test('nothing is tried again once the clone is published, in whatever phase its loss is noticed', () => {
  const budget = startRetryBudget(how);
  budget.watch(observer).published();

  expect(budget.pauseAfter(failure())).toBeNull();
});

describe.each<ErrorCode>(['RSYNCD_FAILED', 'SOURCE_MISMATCH', 'TARGET_BUSY'])('%s', (code) => {
  test('is not tried again where nothing has worked yet', () => {
    expect(startRetryBudget(how).pauseAfter(failure(code))).toBeNull();
  });

  test('is tried again once files came over', () => {
    const budget = startRetryBudget(how);
    budget.watch(observer).copied({ worker: 0, bytes: 1, files: 0 });

    expect(budget.pauseAfter(failure(code))).not.toBeNull();
  });

  test('is tried again in an attempt that follows another', () => {
    const budget = startRetryBudget(how);
    budget.pauseAfter(failure());

    expect(budget.pauseAfter(failure(code))).not.toBeNull();
  });

  test('is tried again by the worker that comes after another', () => {
    expect(startRetryBudget({ ...how, isResumed: true }).pauseAfter(failure(code))).not.toBeNull();
  });
});
