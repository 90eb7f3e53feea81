import { expect, test } from 'vitest';
import { Clone, CloneId, CloneSpec, newClone, PHASES } from '../src/index.ts';

const clone = newClone({
  id: '0192f3c8a1b27c3d9e4f5a6b7c8d9e0f',
  spec: CloneSpec.parse({
    source: { name: 'orders' },
    target: { host: 'replica-1', dataDirectory: '/srv/clone' },
  }),
  createdAt: '2026-11-20T10:00:00.000Z',
});

test('a new clone is queued on its host and has done nothing', () => {
  expect(clone).toMatchObject({
    state: 'queued',
    contact: 'ok',
    phase: null,
    attempt: 1,
    host: 'replica-1',
    startedAt: null,
    result: null,
    error: null,
    leftovers: [],
    instance: { state: 'absent' },
  });
  expect(clone.progress.phases.map(({ name }) => name)).toEqual(PHASES);
  expect(new Set(clone.progress.phases.map(({ state }) => state))).toEqual(new Set(['waiting']));
});

test('a record survives the way through JSON', () => {
  expect(Clone.parse(JSON.parse(JSON.stringify(clone)))).toEqual(clone);
});

test('a field that a newer version added does not make a record unreadable', () => {
  expect(Clone.parse({ ...clone, mood: 'fine' })).toEqual(clone);
});

test.each([
  ['an unknown state', { state: 'paused' }],
  ['a time that is not UTC', { createdAt: '2026-11-20T12:00:00+02:00' }],
  ['a phase that does not exist', { phase: 'coffee' }],
])('a record with %s is refused', (_, part) => {
  expect(Clone.safeParse({ ...clone, ...part }).success).toBe(false);
});

test.each(['', '0192F3C8A1B27C3D9E4F5A6B7C8D9E0F', '0192f3c8-a1b2-7c3d-9e4f-5a6b7c8d9e0f', '../x'])(
  '%j is no id of a clone',
  (id) => {
    expect(CloneId.safeParse(id).success).toBe(false);
  },
);
