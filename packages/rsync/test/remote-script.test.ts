/** The verbs that answer and end, in both shells that a source host may have as `sh`. */
import { chmod, mkdir, readdir, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  makeDirectory,
  partsUser,
  runAsPartsUser,
  runsAsRoot,
  type ScratchDirectory,
  scratchDirectory,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  listFiles,
  localCompressions,
  packagesOf,
  probeHost,
  readRemoteFile,
  readRemotePages,
  remoteExists,
  sweepHost,
} from '../src/index.ts';
import { type LocalRunner, localRunner, remoteTemporary } from './local-runner.ts';

const { signal } = new AbortController();

describe.each(['dash', 'bash'] as const)('with %s', (shell) => {
  let scratch: ScratchDirectory;
  let runner: LocalRunner;
  let data: string;

  beforeEach(async () => {
    scratch = await scratchDirectory();
    runner = await localRunner({
      directory: scratch.path,
      shell,
      greeting: 'echo "Welcome to db1"; echo; echo "pgcloned answers to nobody"',
    });
    data = join(scratch.path, "da ta's");
    await makeDirectory(data);
  });

  afterEach(async () => {
    await scratch[Symbol.asyncDispose]();
  });

  test('a package is told by the files that it has brought, and nothing but a name is taken for one', async () => {
    const answers = [
      "  /lib/a.so) echo 'postgresql-15-a:amd64: /lib/a.so' ;;",
      "  /lib/b.so) echo 'b; rm -rf /: /lib/b.so' ;;",
    ];
    const query = join(runner.bin, 'dpkg-query');
    await writeFile(query, ['#!/bin/sh', 'case $2 in', ...answers, 'esac', ''].join('\n'));
    await chmod(query, 0o755);
    const paths = ['/lib/b.so', '/lib/none.so', '/lib/a.so'];

    expect([...(await packagesOf(runner, { paths, signal }))]).toEqual([
      ['/lib/a.so', 'postgresql-15-a'],
    ]);
  });

  test('probing tells who we are there, what is installed and what the clock says', async () => {
    await writeFile(join(data, 'PG_VERSION'), '15\n');
    await writeFile(join(data, 'postmaster.pid'), '4711\n/data\n1700000000\n5432\n');

    const probe = await probeHost(runner, { dataDirectory: data, signal });

    expect(probe).toMatchObject({
      hasGnuFind: true,
      user: partsUser.name,
      dataDirectoryReadable: true,
      postmasterPid: ['4711', '/data', '1700000000', '5432'],
      compressions: await localCompressions(signal),
    });
    expect(probe.rsyncVersion).toMatch(/^3\.\d+\.\d+$/);
    expect(probe.compressions).toContain('zstd');
    expect(Math.abs(Number(probe.now / 1_000_000n) - Date.now())).toBeLessThan(60_000);
  });

  test('probing a host without the data directory is no error', async () => {
    const probe = await probeHost(runner, { dataDirectory: join(data, 'none'), signal });

    expect(probe).toMatchObject({ dataDirectoryReadable: false, postmasterPid: [] });
  });

  test('a listing keeps names of any bytes, sizes, times and link targets', async () => {
    const names = ['#x', ';y', ' z ', '-n', 'a\nb', '100%', 'root', 'q\'"', '\xff\xfe'];
    await mkdir(join(data, 'base'));
    for (const name of names) {
      await writeFile(Buffer.from(`${data}/base/${name}`, 'latin1'), name, { mode: 0o640 });
    }
    await truncate(join(data, 'base/root'), 3_000_000_000);
    await symlink('/some where', join(data, 'link'));

    const [entries] = await listFiles(runner, { roots: [data], stallMs: 30_000, signal });

    const files = entries?.filter(({ type }) => type === 'file');
    expect(files?.map(({ name }) => name).toSorted()).toEqual(
      names.map((name) => `base/${name}`).toSorted(),
    );
    const { mtimeNs, ctimeNs, ino, size } = await stat(join(data, 'base/root'), { bigint: true });
    expect(files?.find(({ name }) => name === 'base/root')).toEqual({
      name: 'base/root',
      type: 'file',
      bytes: Number(size),
      mtimeNs,
      ctimeNs,
      inode: ino,
      mode: 0o640,
      linkTarget: null,
    });
    expect(entries?.find(({ name }) => name === 'link')).toMatchObject({
      type: 'link',
      linkTarget: '/some where',
    });
    expect(entries?.find(({ name }) => name === 'base')).toMatchObject({ type: 'directory' });
  });

  test('a root may be missing, empty, or a link to a directory', async () => {
    await mkdir(join(data, 'real'));
    await writeFile(join(data, 'real/f'), '');
    await mkdir(join(data, 'empty'));
    await symlink(join(data, 'real'), join(data, 'link'));

    const lists = await listFiles(runner, {
      roots: ['none', 'empty', 'link', 'none'].map((name) => join(data, name)),
      stallMs: 30_000,
      signal,
    });

    expect(lists.map((list) => list?.map(({ name }) => name) ?? null)).toEqual([
      null,
      [],
      ['f'],
      null,
    ]);
  });

  test('a directory that may not be listed is an error that names it', async () => {
    await runAsPartsUser(['mkdir', '--mode', '000', join(data, 'closed')]);

    const listing = listFiles(runner, { roots: [data], stallMs: 30_000, signal });

    await expect(listing).rejects.toMatchObject({
      code: 'REMOTE_COMMAND_FAILED',
      message: expect.stringContaining('closed'),
      hint: expect.stringContaining('postgres'),
    });
  });

  test('a listing takes as long as it goes on, and is a stall once it says nothing more', async () => {
    const entry = String.raw`printf 'd\0000\0001.0\0001.0\0001\000700\000\000\000'`;
    const listing = async (script: string) => {
      await writePartsFile(join(runner.bin, 'find'), `#!/bin/sh\n${script}`);
      await chmod(join(runner.bin, 'find'), 0o755);
      return await listFiles(runner, { roots: [data], stallMs: 2_000, signal });
    };

    const slow = await listing(`for i in 1 2 3 4 5 6; do ${entry}; sleep 0.5; done`);
    expect(slow).toHaveLength(1);
    await expect(listing(`${entry}; exec sleep 5`)).rejects.toMatchObject({
      code: 'STALLED',
      message: expect.stringContaining('the command list got no answer from'),
    });
  });

  test('a listing that was killed is an error, although all that it had complained of is gone', async () => {
    await writePartsFile(
      join(runner.bin, 'find'),
      `#!/bin/sh\nprintf 'd\\0000\\0001.0\\0001.0\\0001\\000700\\000\\000\\000'\necho 'find: x: No such file or directory' >&2\nkill -KILL $$\n`,
    );
    await chmod(join(runner.bin, 'find'), 0o755);

    const listing = listFiles(runner, { roots: [data], stallMs: 30_000, signal });

    await expect(listing).rejects.toMatchObject({
      code: 'REMOTE_COMMAND_FAILED',
      message: expect.stringContaining('137'),
    });
  });

  test('reading a file gives at most the bytes asked for, whatever they are', async () => {
    const content = Buffer.from(Array.from({ length: 9000 }, (_, index) => index % 256));
    await writeFile(join(data, 'pg_control'), content);
    const path = join(data, 'pg_control');

    expect(await readRemoteFile(runner, { path, bytesMax: 8192, signal })).toEqual(
      content.subarray(0, 8192),
    );
    expect(await readRemoteFile(runner, { path, bytesMax: 100_000, signal })).toEqual(content);
    expect(
      await readRemoteFile(runner, { path: join(data, 'none'), bytesMax: 1, signal }),
    ).toBeNull();
  });

  test('pages of a file are those asked for, as many as there are', async () => {
    const path = join(data, '16384');
    const content = Buffer.concat([1, 2, 3].map((byte) => Buffer.alloc(8192, byte)));
    await writeFile(path, content.subarray(0, 20_000));
    const read = async (first: number, count: number, file = path) =>
      await readRemotePages(runner, { path: file, pageBytes: 8192, first, count, signal });

    expect(await read(1, 1)).toEqual(content.subarray(8192, 16_384));
    expect(await read(1, 100)).toEqual(content.subarray(8192, 20_000));
    expect(await read(7, 2)).toEqual(Buffer.alloc(0));
    expect(await read(0, 1, join(data, 'none'))).toBeNull();
    await expect(read(0, 1, data)).rejects.toMatchObject({ code: 'REMOTE_COMMAND_FAILED' });
  });

  test('a file that cannot be read is an error, not a missing one', async () => {
    await runAsPartsUser(['install', '--mode', '000', '/dev/null', join(data, 'closed')]);

    const reading = readRemoteFile(runner, { path: join(data, 'closed'), bytesMax: 1, signal });

    await expect(reading).rejects.toMatchObject({ code: 'REMOTE_COMMAND_FAILED' });
    await expect(readRemoteFile(runner, { path: data, bytesMax: 1, signal })).rejects.toMatchObject(
      { code: 'REMOTE_COMMAND_FAILED' },
    );
  });

  test('existence is told for files, directories and dangling links, and not guessed', async () => {
    await symlink('/nowhere', join(data, 'dangling'));
    await runAsPartsUser(['mkdir', '--mode', '000', join(data, 'closed')]);
    const exists = async (name: string) =>
      await remoteExists(runner, { path: join(data, name), signal });

    expect(await exists('.')).toBe(true);
    expect(await exists('dangling')).toBe(true);
    expect(await exists('none')).toBe(false);
    expect(await exists('dangling/none')).toBe(false);
    await expect(exists('closed/none')).rejects.toMatchObject({ code: 'REMOTE_COMMAND_FAILED' });
  });

  test('a sweep removes what nobody is in charge of and nothing else', async () => {
    const temporary = remoteTemporary(scratch.path);
    const name = `pgcloned_${'ab'.repeat(16)}_1`;
    const abandoned = join(temporary, `${name}.1.aaaaaaaa`);
    await runAsPartsUser(['mkdir', '-p', join(abandoned, 'modules/nonce')]);
    await writeFile(join(abandoned, 'guard'), '1\n');
    await runAsPartsUser(['mkdir', join(temporary, `${name}.1.bbbbbbbb`)]);
    await runAsPartsUser(['mkdir', '-p', join(temporary, `${name}.1.cccccccc/strange`)]);
    await makeDirectory(join(temporary, 'pgcloned_notes'));
    if (runsAsRoot) await mkdir(join(temporary, `${name}.1.dddddddd`));

    expect(await sweepHost(runner, { signal })).toEqual([name, name]);
    expect((await readdir(temporary)).toSorted()).toEqual([
      `${name}.1.cccccccc`,
      ...(runsAsRoot ? [`${name}.1.dddddddd`] : []),
      'pgcloned_notes',
    ]);
    await chmod(temporary, 0o700);
    await rm(temporary, { recursive: true });
  });
});

test('a login shell that fails is an error that says why', async () => {
  await using scratch = await scratchDirectory();
  const runner = await localRunner({
    directory: scratch.path,
    greeting: 'echo "This account is not available" >&2; exit 1',
  });

  await expect(probeHost(runner, { dataDirectory: '/', signal })).rejects.toMatchObject({
    code: 'REMOTE_COMMAND_FAILED',
    message: expect.stringContaining('This account is not available'),
  });
});
