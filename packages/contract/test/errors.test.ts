import { expect, test } from 'vitest';
import { CATALOGUE, CloneError, type ErrorCode, EXIT_STATUS, toCloneError } from '../src/index.ts';

const entries = Object.entries(CATALOGUE);

/** Statuses that a client library, a proxy and a person know how to take. */
const HTTP_STATUSES = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 429, 500, 503];

test.each(entries)('%s has a status, an exit status and a title that make sense', (code, entry) => {
  expect(code).toMatch(/^[A-Z]+(_[A-Z]+)*$/);
  expect(HTTP_STATUSES).toContain(entry.httpStatus);
  expect(Object.values(EXIT_STATUS)).toContain(entry.exitStatus);
  expect(entry.exitStatus).not.toBe(EXIT_STATUS.ok);
  expect(entry.title).toMatch(/^[A-Z].*[^.!]$/);
});

test('no two codes say the same', () => {
  const titles = entries.map(([, { title }]) => title);

  expect(new Set(titles).size).toBe(titles.length);
});

test('what the caller has to change is not called retryable', () => {
  const contradictions = entries.filter(
    ([, { exitStatus, retryable }]) =>
      retryable &&
      [EXIT_STATUS.usage, EXIT_STATUS.access, EXIT_STATUS.bug].some((s) => s === exitStatus),
  );

  expect(contradictions).toEqual([]);
});

test('what asks for patience is called retryable', () => {
  const patience = entries.filter(([, { httpStatus }]) => httpStatus === 503 || httpStatus === 429);

  expect(patience.length).toBeGreaterThan(0);
  expect(patience.filter(([, { retryable }]) => !retryable)).toEqual([]);
});

test('kinds of exit status are distinct, and none looks like the end by a signal', () => {
  const statuses = Object.values(EXIT_STATUS);

  expect(new Set(statuses).size).toBe(statuses.length);
  expect(statuses.filter((status) => status > 125)).toEqual([130]);
});

test('an error carries its code, facts, hint and cause, and takes its statuses from the catalogue', () => {
  const cause = new Error('connect ECONNREFUSED');
  const error = new CloneError('SOURCE_UNREACHABLE', 'no answer from db1:5432', {
    facts: { host: 'db1', port: 5432 },
    hint: 'Start the server.',
    cause,
  });

  expect(error).toMatchObject({
    name: 'CloneError',
    message: 'no answer from db1:5432',
    code: 'SOURCE_UNREACHABLE',
    facts: { host: 'db1', port: 5432 },
    hint: 'Start the server.',
    cause,
    phase: null,
    ...pick('SOURCE_UNREACHABLE'),
  });
});

test('an error without facts, hint and cause has none', () => {
  const error = new CloneError('NOT_FOUND', 'no such clone');

  expect(error).toMatchObject({ facts: {}, hint: null });
  expect(error).not.toHaveProperty('cause');
});

test('a stranger becomes INTERNAL and does not show its text', () => {
  const stranger = new TypeError('password swordfish is not a function');

  const error = toCloneError(stranger);

  expect(error).toMatchObject({ code: 'INTERNAL', cause: stranger });
  expect(`${error.message} ${error.hint} ${JSON.stringify(error.facts)}`).not.toContain(
    'swordfish',
  );
});

test('an error with a code stays itself', () => {
  const error = new CloneError('CANCELLED', 'cancelled by the user');

  expect(toCloneError(error)).toBe(error);
});

function pick(code: ErrorCode) {
  const { httpStatus, exitStatus, retryable } = CATALOGUE[code];
  return { httpStatus, exitStatus, retryable };
}
