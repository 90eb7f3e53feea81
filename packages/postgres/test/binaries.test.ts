import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { findPostgres, scratchDirectory } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { findBinDirectory } from '../src/index.ts';

const { signal } = new AbortController();
const binDirectory = findPostgres();
const major = Number(/(\d+)\/bin$/.exec(binDirectory)?.[1]);

test('the programs of a major version are found where the template says', async () => {
  await using scratch = await scratchDirectory();
  const directory = join(scratch.path, String(major), 'bin');
  await mkdir(dirname(directory));
  await symlink(binDirectory, directory);

  expect(await findBinDirectory(join(scratch.path, '{major}', 'bin'), major, signal)).toBe(
    directory,
  );
});

test('a version that is not installed, and a directory of another version, are refused by name', async () => {
  await using scratch = await scratchDirectory();
  const template = join(scratch.path, '{major}', 'bin');
  const other = String(major + 1);
  await mkdir(join(scratch.path, other));
  await symlink(binDirectory, join(scratch.path, other, 'bin'));

  await expect(findBinDirectory(template, 99, signal)).rejects.toMatchObject({
    code: 'TOOL_MISSING',
    message: `${join(scratch.path, '99', 'bin', 'postgres')} is not there`,
    hint: expect.stringContaining('Install PostgreSQL 99'),
  });
  await expect(findBinDirectory(template, major + 1, signal)).rejects.toMatchObject({
    code: 'TOOL_MISSING',
    message: expect.stringContaining(`postgres is of PostgreSQL ${String(major)}`),
  });
});

test('a pg_waldump of another version is refused: it would take all WAL for damaged', async () => {
  await using scratch = await scratchDirectory();
  const directory = join(scratch.path, String(major));
  await mkdir(directory);
  for (const program of ['postgres', 'pg_ctl', 'pg_receivewal'])
    await symlink(join(binDirectory, program), join(directory, program));
  await writeFile(
    join(directory, 'pg_waldump'),
    "#!/bin/sh\necho 'pg_waldump (PostgreSQL) 99.1'\n",
    { mode: 0o755 },
  );

  await expect(
    findBinDirectory(join(scratch.path, '{major}'), major, signal),
  ).rejects.toMatchObject({
    code: 'TOOL_MISSING',
    message: `${join(directory, 'pg_waldump')} is of PostgreSQL 99`,
  });
});

test('a program that is needed besides is missed by name', async () => {
  await using scratch = await scratchDirectory();
  await symlink(binDirectory, join(scratch.path, String(major)));

  await expect(
    findBinDirectory(join(scratch.path, '{major}'), major, signal, ['pg_amcheck', 'pg_none']),
  ).rejects.toMatchObject({ code: 'TOOL_MISSING', facts: { program: 'pg_none' } });
});
