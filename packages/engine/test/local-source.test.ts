/** How a cluster of this host is found, from its files alone. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { startProcess } from '@pgcloned/process';
import { runsAsRoot, scratchDirectory } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { findLocalServer } from '../src/local-source.ts';

const ANYONE = { originClone: null };

/** What a server that runs would have written: the pid of a program that works in the directory. */
async function withServer(
  lines: readonly string[],
  look: (dataDirectory: string) => Promise<void>,
): Promise<void> {
  await using scratch = await scratchDirectory();
  const dataDirectory = join(scratch.path, 'data');
  await mkdir(dataDirectory);
  const sleeper = await startProcess({
    ...{ file: 'sleep', args: ['60'], env: {}, cwd: dataDirectory },
  });
  try {
    const content = [String(sleeper.pid), dataDirectory, '1700000000', ...lines, ''].join('\n');
    await writeFile(join(dataDirectory, 'postmaster.pid'), content);
    await look(dataDirectory);
  } finally {
    await sleeper.stop('SIGKILL');
  }
}

test.each([
  ['by its socket', ['5433', '/run/pg', '*'], '/run/pg'],
  ['by a socket in its data directory', ['5433', 'sockets', '*'], 'DATA/sockets'],
  ['by an address if it has no socket', ['5433', '', '10.1.2.3'], '10.1.2.3'],
  ['by loopback if it listens everywhere', ['5433', '', '*'], 'localhost'],
])('a server is reached %s', async (_how, lines, host) => {
  await withServer(lines, async (dataDirectory) => {
    expect(await findLocalServer(dataDirectory, ANYONE)).toEqual({
      host: host.replace('DATA', dataDirectory),
      port: 5433,
    });
  });
});

test.each([
  ['does not listen yet', []],
  ['listens nowhere', ['5433', '', '']],
])('one that %s is not reached', async (words, lines) => {
  await withServer(lines, async (dataDirectory) => {
    await expect(findLocalServer(dataDirectory, ANYONE)).rejects.toMatchObject({
      code: 'SOURCE_UNREACHABLE',
      message: `the server on ${dataDirectory} ${words}`,
    });
  });
});

test('where no server runs there is none to be cloned', async () => {
  await using scratch = await scratchDirectory();
  const [idle, gone] = [join(scratch.path, 'idle'), join(scratch.path, 'gone')];
  await mkdir(idle);

  await expect(findLocalServer(idle, ANYONE)).rejects.toMatchObject({
    code: 'SOURCE_UNREACHABLE',
    message: `no server runs on ${idle}`,
    hint: expect.stringContaining('Start it'),
  });
  await expect(findLocalServer(gone, ANYONE)).rejects.toMatchObject({
    code: 'SOURCE_UNREACHABLE',
    message: `${gone} cannot be found`,
  });
});

test('files of another user are refused: the server of the clone could not read its own', async () => {
  const foreign = runsAsRoot ? '/var/lib/postgresql' : '/root';

  await expect(findLocalServer(foreign, ANYONE)).rejects.toMatchObject({
    code: 'SOURCE_RIGHTS_MISSING',
    message: `${foreign} belongs to another user`,
  });
});
