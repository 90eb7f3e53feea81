/** What a stranger may put where our files lie, with the real things. */
import { mkdtemp, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readPlainFile, runProcess } from '../src/index.ts';

let root = '';
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'plain-file-'));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

test('a file is read, with whose it is', async () => {
  await writeFile(join(root, 'file'), 'text');

  expect(await readPlainFile(join(root, 'file'))).toEqual({ text: 'text', isOurs: true });
  expect((await readPlainFile('/proc/sys/kernel/ostype'))?.isOurs).toBe(process.geteuid?.() === 0);
});

test('a pipe, a link, a socket, an endless file and none at all are not waited for and not read', async () => {
  const { signal } = new AbortController();
  await runProcess({ file: 'mkfifo', args: [join(root, 'pipe')], env: {} }, { signal });
  await symlink('/etc/hostname', join(root, 'link'));
  await writeFile(join(root, 'endless'), '');
  await truncate(join(root, 'endless'), 2 ** 40);
  await using undo = new AsyncDisposableStack();
  const server = undo.use(createServer());
  await new Promise<void>((resolve) => {
    server.listen(join(root, 'socket'), resolve);
  });

  for (const name of ['pipe', 'link', 'socket', 'endless', 'nothing', 'link/below'])
    expect(await readPlainFile(join(root, name)), name).toBeNull();
});
