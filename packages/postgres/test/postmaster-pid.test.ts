/** A stale file, a reused pid and a server that runs are told apart; the server is a real one. */
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { scratchDirectory, startPrimary } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { isServerRunning, parsePostmasterPid } from '../src/index.ts';

const LINES = [
  '4711',
  '/var/lib/postgresql/15/a b',
  '1700000000',
  '5433',
  '/var/run/postgresql',
  'localhost',
  ' 18446744072000000000     65544',
  'ready   ',
  '',
];

test('the lines of a running server are read', () => {
  expect(parsePostmasterPid(LINES)).toEqual({
    pid: 4711,
    dataDirectory: '/var/lib/postgresql/15/a b',
    startedAtSeconds: 1_700_000_000,
    port: 5433,
    socketDirectory: '/var/run/postgresql',
    listenAddress: 'localhost',
    sharedMemory: { key: -1_709_551_616n, id: 65_544n },
    status: 'ready',
  });
});

test('a file that is being written lacks what is not there yet', () => {
  expect(parsePostmasterPid(LINES.slice(0, 3))).toMatchObject({
    pid: 4711,
    port: null,
    socketDirectory: null,
    listenAddress: null,
    sharedMemory: null,
    status: null,
  });
  expect(parsePostmasterPid(['4711'])).toBeNull();
  expect(parsePostmasterPid([''])).toBeNull();
  expect(parsePostmasterPid(['not a pid', '/data'])).toBeNull();
});

test('the pid of a single-user server is the one behind its minus sign', () => {
  expect(parsePostmasterPid(['-4711', '/data'])?.pid).toBe(4711);
});

test('a server that runs is found, and one that was stopped is not', async () => {
  await using server = await startPrimary();
  const running = await isServerRunning(server.dataDirectory);
  expect(running).toMatchObject({ pid: server.pid, port: server.port, status: 'ready' });

  await server.stop();

  expect(await isServerRunning(server.dataDirectory)).toBeNull();
});

test('a file that a killed server left is stale, also when its pid lives on as another program', async () => {
  await using scratch = await scratchDirectory();
  const stale = async (pid: number) => {
    await writeFile(
      join(scratch.path, 'postmaster.pid'),
      [String(pid), scratch.path, '1700000000', '5432', '', '', '1 1', 'ready', ''].join('\n'),
    );
    return await isServerRunning(scratch.path);
  };

  expect(await stale(2 ** 22 + 1)).toBeNull();
  // The pid of this test: alive, but at work somewhere else.
  expect(await stale(process.pid)).toBeNull();
});

test('shared memory that another server has made since the restart of the host is not that of this one', async () => {
  await using server = await startPrimary();
  await using scratch = await scratchDirectory();
  const lines = (await readFile(join(server.dataDirectory, 'postmaster.pid'), 'utf8')).split('\n');
  const said = async (pid: number, startedAt = '1700000000') => {
    const text = lines.with(0, String(pid)).with(1, scratch.path).with(2, startedAt).join('\n');
    await writeFile(join(scratch.path, 'postmaster.pid'), text);
    return await isServerRunning(scratch.path);
  };

  expect(await said(2 ** 22 + 1)).toBeNull();
  // A directory may have several names, and a server in a container other pids.
  expect(await said(server.pid)).toMatchObject({ pid: server.pid });
  expect(await said(2 ** 22 + 1, lines[2])).not.toBeNull();
});

test('a directory without the file, and one that does not exist, has no server', async () => {
  await using scratch = await scratchDirectory();
  const directory = join(scratch.path, 'data');
  await mkdir(directory);
  expect(await isServerRunning(directory)).toBeNull();

  await rm(directory, { recursive: true });

  expect(await isServerRunning(directory)).toBeNull();
});
