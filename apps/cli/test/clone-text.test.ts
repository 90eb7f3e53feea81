/** What a person reads about clones. */
import type { Clone } from '@pgcloned/client';
import { CloneSpec, newClone } from '@pgcloned/contract';
import { expect, test } from 'vitest';
import { formatCloneTable } from '../src/clone-text.ts';

const clone = newClone({
  id: '0192f3c8000070008000000000000000',
  spec: CloneSpec.parse({
    source: { name: 'orders' },
    target: { host: 'ci-1', dataDirectory: '/srv/pg/clones/run-1' },
  }),
  createdAt: '2026-11-20T10:00:00.000Z',
});

test.each([
  ['running', 'port 5501'],
  ['stopped', 'stopped'],
  ['removed', 'removed'],
  ['absent', ''],
] as const)('a list says what there is of a clone: %s', (state, said) => {
  const ended = {
    ...clone,
    state: 'succeeded',
    instance: { ...clone.instance, state, port: state === 'running' ? 5501 : null },
  } as Clone;

  const [head = '', row = ''] = formatCloneTable([ended]).split('\n');

  const column = head.indexOf('REPLICA');
  expect(row.slice(column, head.indexOf('CREATED')).trim()).toBe(said);
});
