/** What a preflight makes beside the target goes with it, also if it was killed: then with the next one. */
import { mkdir, readdir, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { scratchDirectory } from '@pgcloned/testbed';
import { beforeEach, expect, test, vi } from 'vitest';
import { makeTemporaryDirectory } from '../src/temporary-directory.ts';

let directory = '';

beforeEach(async () => {
  const scratch = await scratchDirectory();
  directory = scratch.path;
  vi.stubEnv('TMPDIR', directory);
  return async () => {
    vi.unstubAllEnvs();
    await scratch[Symbol.asyncDispose]();
  };
});

test('it is removed with all that is in it', async () => {
  {
    await using temporary = await makeTemporaryDirectory();
    await writeFile(join(temporary.path, 'file'), 'x');
    expect(await readdir(directory)).toHaveLength(1);
  }

  expect(await readdir(directory)).toEqual([]);
});

test('what a killed one has left goes with the next one; what may be in use, and what is not ours, stays', async () => {
  const anHourAgo = Date.now() / 1000 - 3600;
  for (const name of ['pgcloned-preflight-dead', 'pgcloned-preflight-live', 'other']) {
    await mkdir(join(directory, name));
    await writeFile(join(directory, name, 'known_hosts'), 'x');
    if (!name.endsWith('live')) await utimes(join(directory, name), anHourAgo, anHourAgo);
  }

  await using temporary = await makeTemporaryDirectory();

  const left = (await readdir(directory)).filter((name) => !temporary.path.endsWith(name));
  expect(left.toSorted()).toEqual(['other', 'pgcloned-preflight-live']);
});
