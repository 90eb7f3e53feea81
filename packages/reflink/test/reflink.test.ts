/** Whether blocks are shared is decided by the filesystem, so each here is a real one. */
import { execFileSync } from 'node:child_process';
import { chmod, mkdir, readdir, readFile, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { mountFilesystem, runsAsRoot, type TestFilesystem } from '@pgcloned/testbed';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  keepCopyOnWrite,
  measureSpace,
  probeReflink,
  reflinkFile,
  reflinkFiles,
} from '../src/index.ts';

const MIB = 1024 * 1024;
const { signal } = new AbortController();
const options = { fallback: 'fail', signal } as const;

async function refusal(promise: Promise<unknown>): Promise<CloneError> {
  const error = await promise.then(
    () => null,
    (reason: unknown) => reason,
  );
  if (error instanceof CloneError) return error;
  throw new Error('not refused as expected', { cause: error });
}

describe.skipIf(!runsAsRoot).each(['xfs', 'btrfs'] as const)('on %s (needs root)', (type) => {
  let filesystem: TestFilesystem;
  let from: string;
  let to: string;
  let round = 0;

  beforeAll(async () => {
    filesystem = await mountFilesystem({ type, bytes: 400 * MIB });
  });
  afterAll(async () => {
    await filesystem[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    round += 1;
    from = join(filesystem.path, `source-${String(round)}`);
    to = join(filesystem.path, `clone-${String(round)}`);
    await mkdir(from);
    await mkdir(to);
  });

  async function write(name: string, bytes: number): Promise<string> {
    await writeFile(join(from, name), Buffer.alloc(bytes, name));
    return join(from, name);
  }

  test('a file shares its blocks, and has mode and times of its source', async () => {
    const source = await write('16384', 8 * MIB);
    await chmod(source, 0o640);
    await utimes(source, 1_600_000_000.123_456, 1_700_000_000.654_321);

    const outcome = await reflinkFile({ from: source, to: join(to, '16384') }, options);

    expect(outcome).toEqual({ how: 'shared', bytes: 8 * MIB });
    expect(await measureSpace([to], { signal })).toEqual({ ownBytes: 0, sharedBytes: 8 * MIB });
    const [there, here] = await Promise.all([stat(source), stat(join(to, '16384'))]);
    expect(here.mode).toBe(there.mode);
    expect(Math.abs(here.mtimeMs - there.mtimeMs)).toBeLessThan(0.002);
    expect(Math.abs(here.atimeMs - there.atimeMs)).toBeLessThan(0.002);
    expect(await readFile(join(to, '16384'))).toEqual(await readFile(source));
  });

  test('what the source writes later is its own, and so is what the clone writes', async () => {
    const source = await write('16384', MIB);
    await reflinkFile({ from: source, to: join(to, '16384') }, options);

    // Nobody has synced it.
    await writeFile(join(to, '16384'), Buffer.alloc(256 * 1024, 'clone'), { flag: 'r+' });
    await writeFile(join(to, '16385'), Buffer.alloc(512 * 1024, 'clone'));

    expect(await readFile(source)).toEqual(Buffer.alloc(MIB, '16384'));
    expect(await measureSpace([to], { signal })).toEqual({
      ownBytes: 768 * 1024,
      sharedBytes: 768 * 1024,
    });
  });

  test('names of any bytes arrive, and what has vanished is told', async () => {
    const name = Buffer.from([0x61, 0xff, 0x0a, 0x62]);
    const odd = {
      from: Buffer.concat([Buffer.from(`${from}/`), name]),
      to: Buffer.concat([Buffer.from(`${to}/`), name]),
    };
    await writeFile(odd.from, 'odd');
    const files = [
      odd,
      { from: await write('a', 10_000), to: join(to, 'a') },
      { from: join(from, 'gone'), to: join(to, 'gone') },
    ];
    const told: [unknown, number][] = [];

    const reflinked = await reflinkFiles({
      ...options,
      files,
      onCopied: (file, bytes) => told.push([file, bytes]),
    });

    expect(reflinked).toEqual({ files: 2, bytes: 10_003, copiedBytes: 0, vanished: [files[2]] });
    expect(new Map(told as never)).toEqual(
      new Map([
        [files[0], 3],
        [files[1], 10_000],
      ] as never),
    );
    expect(await readFile(odd.to, 'utf8')).toBe('odd');
    expect(await readdir(to)).toHaveLength(2);
  });

  test('many files are made on threads, each like one alone', async () => {
    const names = Array.from({ length: 1_000 }, (_, index) => `${String(index)}_ä`);
    for (const name of names) await writeFile(join(from, name), name);
    await chmod(join(from, names[7] ?? ''), 0o600);
    await utimes(join(from, names[7] ?? ''), 1_600_000_000.123_456, 1_700_000_000.654_321);
    const files = [...names, 'gone'].map((name) => ({
      from: join(from, name),
      to: join(to, name),
    }));

    const reflinked = await reflinkFiles({ ...options, files });

    expect(reflinked).toMatchObject({ files: 1_000, copiedBytes: 0, vanished: [files[1_000]] });
    for (const name of names) expect(await readFile(join(to, name), 'utf8')).toBe(name);
    const [there, here] = await Promise.all([stat(files[7]?.from ?? ''), stat(files[7]?.to ?? '')]);
    expect(here.mode).toBe(there.mode);
    expect(Math.abs(here.mtimeMs - there.mtimeMs)).toBeLessThan(0.002);
  });

  test('a file that exists already is neither overwritten nor removed', async () => {
    const source = await write('1', 8_192);
    await writeFile(join(to, '1'), 'somebody else');

    const error = await refusal(reflinkFile({ from: source, to: join(to, '1') }, options));

    expect(error.code).toBe('TARGET_NOT_EMPTY');
    expect(await readFile(join(to, '1'), 'utf8')).toBe('somebody else');
  });

  test('after a failure or a cancel no file is being made any more', async () => {
    const source = await write('1', 8_192);
    // Each of the threads meets one in its first batch of 200, however the others get on.
    for (let index = 20; index < 2_000; index += 200) await writeFile(join(to, String(index)), '');
    const files = Array.from({ length: 4_000 }, (_, index) => ({
      from: source,
      to: join(to, String(index)),
    }));

    const error = await refusal(reflinkFiles({ ...options, files }));
    const afterFailure = await readdir(to);
    await delay(100);
    expect(error.code).toBe('TARGET_NOT_EMPTY');
    expect(await readdir(to)).toEqual(afterFailure);

    const other = join(to, 'other');
    await mkdir(other);
    const cancelling = new AbortController();
    const cancelled = reflinkFiles({
      fallback: 'fail',
      signal: cancelling.signal,
      files: files.map((file, index) => ({ ...file, to: join(other, String(index)) })),
      onCopied: () => {
        cancelling.abort(new Error('user cancelled'));
      },
    });

    await expect(cancelled).rejects.toThrow('user cancelled');
    const afterCancel = await readdir(other);
    await delay(100);
    // What four threads had in hand.
    expect(afterCancel.length).toBeLessThan(1_000);
    expect(await readdir(other)).toEqual(afterCancel);
  });

  test('a probe leaves nothing behind', async () => {
    await mkdir(join(from, 'base'));
    await writeFile(join(from, 'base/PG_VERSION'), '15\n');

    await probeReflink(from, to);
    await probeReflink(join(from, 'base'), to);
    await probeReflink(to, from);
    await probeReflink(to, to);

    expect(await readdir(from)).toEqual(['base']);
    expect(await readdir(to)).toEqual([]);
  });

  test('another filesystem is refused by name, with the remedy', async () => {
    await using other = await mountFilesystem({ type: 'ext4', bytes: 20 * MIB });
    await write('1', 8_192);

    const error = await refusal(probeReflink(from, other.path));

    expect(error.code).toBe('REFLINK_UNSUPPORTED');
    expect(error.message).toBe(
      `files of ${type} on ${filesystem.path} cannot share blocks with those of ext4 on ${other.path}`,
    );
    expect(error.hint).toContain(`Choose a target below ${filesystem.path}`);
    expect((await readdir(other.path)).filter((name) => name !== 'lost+found')).toEqual([]);
  });
});

describe.skipIf(!runsAsRoot)('btrfs without copy-on-write (needs root)', () => {
  test('directories and single files are made like their source', async () => {
    await using filesystem = await mountFilesystem({ type: 'btrfs', bytes: 200 * MIB });
    const [from, to] = [join(filesystem.path, 'source'), join(filesystem.path, 'clone')];
    for (const path of [from, to, join(from, 'base'), join(to, 'base')]) await mkdir(path);
    await writeFile(join(from, 'before'), Buffer.alloc(MIB, 1));
    execFileSync('chattr', ['+C', from, join(from, 'base')]);
    await writeFile(join(from, 'after'), Buffer.alloc(MIB, 2));
    await writeFile(join(from, 'base/1'), Buffer.alloc(MIB, 3));
    const names = ['before', 'after', 'base/1'];
    const files = names.map((name) => ({ from: join(from, name), to: join(to, name) }));

    await probeReflink(from, to);
    await probeReflink(join(from, 'base'), to);
    await keepCopyOnWrite(
      // The last one was dropped meanwhile.
      [from, join(from, 'base'), join(from, 'dropped')].map((path) => ({
        from: path,
        to: path.replace(from, to),
      })),
      { signal },
    );
    const reflinked = await reflinkFiles({ ...options, files });

    const attributes = (root: string) =>
      execFileSync('lsattr', ['-R', root], { encoding: 'utf8' })
        .replaceAll(root, '')
        .split('\n')
        .sort();
    expect(reflinked.copiedBytes).toBe(0);
    expect(attributes(to)).toEqual(attributes(from));
    expect(await measureSpace([to], { signal })).toEqual({ ownBytes: 0, sharedBytes: 3 * MIB });
  });
});

describe.skipIf(!runsAsRoot)('on ext4 (needs root)', () => {
  let filesystem: TestFilesystem;
  let file: { from: string; to: string };

  beforeAll(async () => {
    filesystem = await mountFilesystem({ type: 'ext4', bytes: 40 * MIB });
    file = { from: join(filesystem.path, 'from'), to: join(filesystem.path, 'to') };
    await writeFile(file.from, Buffer.alloc(3 * MIB + 5, 7), { mode: 0o600 });
  });
  afterAll(async () => {
    await filesystem[Symbol.asyncDispose]();
  });

  test('it is refused by name, with the remedy, and leaves nothing', async () => {
    const errors = [
      await refusal(probeReflink(filesystem.path, filesystem.path)),
      await refusal(reflinkFile(file, options)),
    ];

    for (const error of errors) {
      expect(error.code).toBe('REFLINK_UNSUPPORTED');
      expect(error.message).toBe(`the files of ext4 on ${filesystem.path} do not share blocks`);
      expect(error.hint).toContain('XFS or btrfs');
    }
    expect((await readdir(filesystem.path)).sort()).toEqual(['from', 'lost+found']);
  });

  test('bytes are copied only if that was asked for', async () => {
    const reflinked = await reflinkFiles({ fallback: 'copy', signal, files: [file] });

    expect(reflinked).toEqual({
      files: 1,
      bytes: 3 * MIB + 5,
      copiedBytes: 3 * MIB + 5,
      vanished: [],
    });
    expect(await readFile(file.to)).toEqual(await readFile(file.from));
    expect((await stat(file.to)).mode).toBe((await stat(file.from)).mode);
    expect((await stat(file.to)).mtimeMs).toBeCloseTo((await stat(file.from)).mtimeMs, 2);
  });
});

test.skipIf(!runsAsRoot)(
  'a filesystem that does not tell has no space account (needs root)',
  async () => {
    await using filesystem = await mountFilesystem({ type: 'tmpfs', bytes: MIB });
    await writeFile(join(filesystem.path, 'file'), 'x');

    expect(await measureSpace([filesystem.path], { signal })).toBeNull();
  },
);

test.skipIf(!runsAsRoot)('a full filesystem is one that has no space (needs root)', async () => {
  await using filesystem = await mountFilesystem({ type: 'xfs', bytes: 300 * MIB });
  const from = join(filesystem.path, 'from');
  await writeFile(from, Buffer.alloc(MIB, 1));
  const filler = join(filesystem.path, 'filler');
  execFileSync('sh', ['-c', 'dd if=/dev/zero of="$0" bs=1M; sync -f "$0"', filler], {
    stdio: 'ignore',
  });
  const files = Array.from({ length: 100_000 }, (_, index) => ({
    from,
    to: `${from}-${String(index)}`,
  }));

  const error = await refusal(reflinkFiles({ ...options, files }));

  expect(error.code).toBe('TARGET_NO_SPACE');
});
