import { watch } from 'node:fs';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { unfinishedWrites, writeDurably } from '../src/index.ts';

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pgcloned-durable-'));
});

afterEach(async () => {
  await rm(directory, { recursive: true });
});

const modeOf = async (path: string) => ((await stat(path)).mode & 0o777).toString(8);

test('a file is private unless a mode is asked for, whatever the umask', async () => {
  const umask = process.umask(0o077);
  try {
    await writeDurably(join(directory, 'secret'), 'one');
    await writeDurably(join(directory, 'public'), 'two', { mode: 0o644 });
  } finally {
    process.umask(umask);
  }

  expect(await modeOf(join(directory, 'secret'))).toBe('600');
  expect(await modeOf(join(directory, 'public'))).toBe('644');
  expect(await readFile(join(directory, 'public'), 'utf8')).toBe('two');
});

test('an older version that others may read does not make the new one readable', async () => {
  const path = join(directory, 'journal');
  await writeFile(path, 'old');
  await chmod(path, 0o666);

  await writeDurably(path, 'new');

  expect(await modeOf(path)).toBe('600');
  expect(await readFile(path, 'utf8')).toBe('new');
});

test('writers at the same time leave the whole text of one of them and nothing else', async () => {
  const path = join(directory, 'journal');
  const texts = Array.from({ length: 10 }, (_, index) => String(index).repeat(10_000));

  await Promise.all(texts.map(async (text) => await writeDurably(path, text)));

  expect(texts).toContain(await readFile(path, 'utf8'));
  expect(await readdir(directory)).toEqual(['journal']);
});

test('a write that fails leaves the place as it was', async () => {
  const path = join(directory, 'journal');
  await mkdir(join(path, 'child'), { recursive: true });

  await expect(writeDurably(path, 'new')).rejects.toThrow();

  expect(await readdir(directory)).toEqual(['journal']);
});

test('what a write that was killed leaves beside the file is found, and nothing else', async () => {
  const path = join(directory, 'journal');
  const begun = new Promise<string>((resolve) => {
    const watcher = watch(directory, (_, name) => {
      if (name?.endsWith('.tmp') !== true) return;
      watcher.close();
      resolve(join(directory, name));
    });
  });
  await writeDurably(path, 'new');
  expect(await unfinishedWrites(path)).toEqual([]);

  await writeFile(await begun, 'ne');
  await writeFile(`${path}.tmp`, '');
  await writeFile(join(directory, 'journal-2.0123456789ab.tmp'), '');

  expect(await unfinishedWrites(path)).toEqual([await begun]);
});
