import { chown, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { appendSettings } from '@pgcloned/postgres';
import { runsAsRoot } from '@pgcloned/testbed';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { findLocalServer } from '../src/local-source.ts';
import { writeMarker } from '../src/target/marker.ts';
import { NOT_READY } from '../src/target/unready.ts';

const NAMED = 'a'.repeat(32);
const OTHER = 'b'.repeat(32);

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pgcloned-origin-'));
});

afterEach(async () => {
  await rm(directory, { recursive: true });
});

test('what has replaced a clone is not copied in its place', async () => {
  await writeMarker(directory, 'data', {
    cloneId: OTHER,
    dataDirectory: directory,
    finished: true,
  });

  await expect(findLocalServer(directory, { originClone: NAMED })).rejects.toMatchObject({
    code: 'SOURCE_UNKNOWN',
    facts: { clone: NAMED, found: OTHER },
  });
  await expect(findLocalServer(directory, { originClone: OTHER })).rejects.toMatchObject({
    code: 'SOURCE_UNREACHABLE',
  });
});

test('a clone that is gone is not waited for', async () => {
  const gone = findLocalServer(join(directory, 'gone'), { originClone: NAMED });

  await expect(gone).rejects.toMatchObject({
    code: 'SOURCE_UNKNOWN',
    facts: { clone: NAMED, found: null },
  });
});

test('a cluster whose settings cannot be read is no source, since nobody can tell whether onReady has run', async () => {
  await mkdir(join(directory, 'postgresql.auto.conf'));

  await expect(findLocalServer(directory, { originClone: null })).rejects.toMatchObject({
    code: 'SOURCE_RIGHTS_MISSING',
    facts: { dataDirectory: directory, reason: 'EISDIR' },
  });
});

test.skipIf(!runsAsRoot)(
  'files of another user are not copied: nobody but their owner could run the clone (needs root)',
  async () => {
    await chown(directory, 65_534, 65_534);

    await expect(findLocalServer(directory, { originClone: null })).rejects.toMatchObject({
      code: 'SOURCE_RIGHTS_MISSING',
      facts: { ownerUid: 65_534, ownUid: 0 },
      hint: expect.stringContaining('as the user that owns'),
    });
  },
);

test('a clone is no source as long as its onReady files have not run, though a private server of ours runs there', async () => {
  await writeFile(join(directory, 'postgresql.auto.conf'), appendSettings('', NOT_READY));

  await expect(findLocalServer(directory, { originClone: null })).rejects.toMatchObject({
    code: 'SOURCE_UNREACHABLE',
    message: `the clone in ${directory} is still being made`,
  });
});
