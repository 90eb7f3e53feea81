/** How often a clone is tried again. */
import { CloneError, type ErrorCode, type PhaseName } from '@pgcloned/contract';
import { expect, test } from 'vitest';
import type { CloneObserver } from '../src/observer.ts';
import { startRetryBudget } from '../src/retry-budget.ts';

const observer = {
  copyPlanned: () => {},
  copied: () => {},
} as unknown as CloneObserver;

function failure(code: ErrorCode = 'SOURCE_LOST', phase: PhaseName = 'copy-files'): CloneError {
  const error = new CloneError(code, 'it broke off');
  error.phase = phase;
  return error;
}

/** The failures of attempts that leave so much of so much missing, up to the one that ends the clone. */
function attemptsOf(missing: (attempt: number) => { readonly of: number; readonly bytes: number }) {
  const budget = startRetryBudget();
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

test.each<[ErrorCode, PhaseName]>([
  ['TARGET_NO_SPACE', 'copy-files'],
  ['CANCELLED', 'copy-files'],
  ['WORKER_STOPPED', 'copy-files'],
  ['SOURCE_LOST', 'start-replica'],
])('%s in %s is not tried again', (code, phase) => {
  expect(startRetryBudget().pauseAfter(failure(code, phase))).toBeNull();
});
