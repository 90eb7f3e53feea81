import { chmod, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { scratchDirectory } from '@pgcloned/testbed';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { formatPassfileLine } from '../src/index.ts';
import { findPassword, readPassfile } from '../src/passfile.ts';

const key = { host: 'db1', port: 5432, database: 'postgres', user: 'cloner' };
const field = fc
  .string({
    unit: fc.oneof(fc.constantFrom(':', '\\', '*', '#', ' '), fc.string({ minLength: 1 })),
    minLength: 1,
  })
  .map((text) => text.replace(/[\n\r\0\u2028\u2029]/g, '_'));

test('any password comes back from the line that was written for it', () => {
  fc.assert(
    fc.property(
      fc.record({ host: field, port: fc.integer({ min: 1 }), database: field, user: field }),
      field,
      (anyKey, password) => {
        // As in libpq, a line that begins with # is a comment, and names of sockets are looked up as localhost.
        fc.pre(!anyKey.host.startsWith('#') && anyKey.host !== '/tmp');

        expect(findPassword(formatPassfileLine(anyKey, password), anyKey)).toBe(password);
      },
    ),
  );
});

test('the first line that matches wins, and a star matches anything', () => {
  const content = [
    '# db1:5432:postgres:cloner:comment',
    'db2:5432:postgres:cloner:other host',
    '*:*:*:cloner:first',
    'db1:5432:postgres:cloner:second',
  ].join('\n');

  expect(findPassword(content, key)).toBe('first');
  expect(findPassword(content, { ...key, user: 'nobody' })).toBeNull();
});

test('an escaped star is a star', () => {
  expect(findPassword('\\*:*:*:*:secret', key)).toBeNull();
  expect(findPassword('\\*:*:*:*:secret', { ...key, host: '*' })).toBe('secret');
});

test('the default socket directory is localhost, another one is itself', () => {
  const content = 'localhost:*:*:*:default\n/srv/s:*:*:*:own';

  expect(findPassword(content, { ...key, host: '/var/run/postgresql' })).toBe('default');
  expect(findPassword(content, { ...key, host: '/srv/s' })).toBe('own');
});

test('a password ends at the next colon and at a carriage return, as in libpq', () => {
  expect(findPassword('*:*:*:*:a\\:b:c\r\n', key)).toBe('a:b');
  expect(findPassword('*:*:*:*:a\\\\\r\n', key)).toBe('a\\');
});

test.each([
  [0o600, 'read'],
  [0o400, 'read'],
  [0o640, 'refused'],
  [0o604, 'refused'],
])('a file of mode %i is %s', async (mode, state) => {
  await using scratch = await scratchDirectory();
  const path = join(scratch.path, 'pgpass');
  await writeFile(path, '*:*:*:*:secret\n');
  await chmod(path, mode);

  expect((await readPassfile(path)).state).toBe(state);
});

test('a directory is refused and a missing file is missing', async () => {
  await using scratch = await scratchDirectory();

  expect((await readPassfile(scratch.path)).state).toBe('refused');
  expect((await readPassfile(join(scratch.path, 'none'))).state).toBe('missing');
});
