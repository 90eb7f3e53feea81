/** Who holds a lock is decided by the kernel, so each holder here is a real process or a real open file. */
import { chmod, chown, mkdtemp, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { lockFile, runProcess, startProcess } from '../src/index.ts';

const { signal } = new AbortController();
const UID_NOBODY = 65_534;

let directory: string;
let path: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pgcloned-lock-'));
  path = join(directory, 'target.lock');
});

afterEach(async () => {
  await rm(directory, { recursive: true });
});

async function isFree(): Promise<boolean> {
  const { status } = await runProcess(
    { file: 'flock', args: ['--nonblock', path, 'true'], env: {} },
    { signal, accept: [0, 1] },
  );
  return status === 0;
}

test('a lock excludes other processes and this one until it is disposed of', async () => {
  {
    await using lock = await lockFile(path, { signal });

    expect(lock?.path).toBe(path);
    expect(await isFree()).toBe(false);
    expect(await lockFile(path, { signal })).toBeNull();
  }

  expect(await isFree()).toBe(true);
});

test('a lock is held as long as a child that inherited it lives', async () => {
  const lock = await lockFile(path, { signal });
  if (lock === null) throw new Error('not locked');
  const child = await startProcess({
    file: 'sleep',
    args: ['600'],
    env: {},
    inheritedFds: [lock.fd],
  });

  await lock[Symbol.asyncDispose]();
  const freeWhileItLives = await isFree();
  await child.stop();

  expect(freeWhileItLives).toBe(false);
  expect(await isFree()).toBe(true);
});

test('a lock can be waited for', async () => {
  const holder = await lockFile(path, { signal });
  const waiting = lockFile(path, { signal, waitMs: 20_000 });
  await holder?.[Symbol.asyncDispose]();

  await using lock = await waiting;

  expect(lock).not.toBeNull();
});

test('waiting for a lock ends with null when the time is up', async () => {
  await using _ = await lockFile(path, { signal });

  expect(await lockFile(path, { signal, waitMs: 50 })).toBeNull();
});

test('waiting for a lock ends when it is aborted, and leaves no claim', async () => {
  const controller = new AbortController();
  {
    await using _ = await lockFile(path, { signal });
    const waiting = lockFile(path, { signal: controller.signal, waitMs: 20_000 });
    controller.abort(new Error('enough'));

    await expect(waiting).rejects.toThrow('enough');
  }

  expect(await isFree()).toBe(true);
});

test('a lock file can be opened by every user, whatever the umask of the first', async () => {
  const umask = process.umask(0o077);
  try {
    await using _ = await lockFile(path, { signal });
  } finally {
    process.umask(umask);
  }

  expect((await stat(path)).mode & 0o777).toBe(0o644);
});

test.skipIf(process.getuid?.() !== 0)(
  'a file of another user in a sticky directory can be locked (needs root)',
  async () => {
    await writeFile(path, '');
    await chown(path, UID_NOBODY, UID_NOBODY);
    await chmod(directory, 0o1777);

    await using lock = await lockFile(path, { signal });

    expect(lock).not.toBeNull();
    expect(await isFree()).toBe(false);
  },
);

test.skipIf(process.getuid?.() !== 0)(
  'an ordinary user can lock a file that only root may write (needs root)',
  async () => {
    await writeFile(path, '');
    await chmod(directory, 0o1777);
    process.seteuid?.(UID_NOBODY);
    try {
      await using lock = await lockFile(path, { signal });

      expect(lock).not.toBeNull();
    } finally {
      process.seteuid?.(0);
    }
  },
);

test('a link in the place of the lock file is not followed', async () => {
  await symlink(join(directory, 'elsewhere'), path);

  await expect(lockFile(path, { signal })).rejects.toThrow();

  expect(await readdir(directory)).toEqual(['target.lock']);
});

test('a pipe in the place of the lock file is refused and does not block', async () => {
  await runProcess({ file: 'mkfifo', args: [path], env: {} }, { signal });

  await expect(lockFile(path, { signal })).rejects.toThrow('not a regular file');
});
