/**
 * Whatever befell source and target since an earlier copy, and wherever that one broke off: the next copy leaves exactly
 * what the source has (R6.9, R6.10).
 *
 * Trees of files are made, changed and copied at random by the real copy, over a real sshd and a real rsync daemon. The
 * seed stands in the name of a test; `SEED=n` repeats it, `ROUNDS=n` makes more of them.
 */
import { randomInt, randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import {
  chmod,
  cp,
  lstat,
  mkdir,
  readFile,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { connectSsh, type SshConnection } from '@pgcloned/ssh';
import {
  makeDirectory,
  type ScratchDirectory,
  scratchDirectory,
  startSshd,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { CloneRun } from '../src/clone-run.ts';
import { listLocal } from '../src/copy/reconcile.ts';
import type { CloneObserver } from '../src/observer.ts';
import { type Copy, copyFiles } from '../src/phases/copy-files.ts';
import { prepareClonePlace } from '../src/phases/stream-wal.ts';
import type { Ready } from '../src/ready.ts';
import { claimTablespaces, claimTarget } from '../src/target/claim.ts';
import { makeLockSet } from '../src/target/locks.ts';
import { controlTransfer } from '../src/transfer-control.ts';

const ROUNDS = Number(process.env.ROUNDS ?? 8);
const seeds =
  process.env.SEED === undefined
    ? Array.from({ length: ROUNDS }, () => randomInt(2 ** 31))
    : [Number(process.env.SEED)];
const VERSION_DIRECTORY = 'PG_15_202209061';
const signal = new AbortController().signal;

const owned = new AsyncDisposableStack();
let ssh: SshConnection;
let scratch: ScratchDirectory;

beforeAll(async () => {
  const sshd = owned.use(await startSshd());
  ssh = owned.use(await connectSsh(sshd.target, { signal }));
});

beforeEach(async () => {
  scratch = await scratchDirectory();
  return async () => {
    await scratch[Symbol.asyncDispose]();
  };
});

afterAll(async () => {
  await owned.disposeAsync();
});

/** A number in [0, below) at each call, always the same ones for a seed (mulberry32). */
function numbersFrom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

type Numbers = ReturnType<typeof numbersFrom>;

/** Some pages; now and then many, or an odd end. */
function contentFrom(below: Numbers): Buffer {
  const pages = below(8) === 0 ? 300 + below(400) : below(12);
  const content = Buffer.alloc(pages * 8192 + (below(4) === 0 ? below(8192) : 0));
  for (let page = 0; page * 8192 < content.length; page++)
    content.fill(`${String(below(2 ** 31))} `, page * 8192);
  return content;
}

const nameFrom = (below: Numbers): string =>
  `${['global', 'base/1', 'base/5', 'pg_xact', '.'][below(5)] ?? '.'}/${String(below(30))}${
    ['', '', '', '.1', '_vm', '_fsm'][below(6)] ?? ''
  }`;

async function put(path: string, content: string | Buffer): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, content);
  // The daemon runs as somebody else.
  await chmod(path, 0o644);
}

async function makeTree(root: string, below: Numbers): Promise<void> {
  await mkdir(join(root, 'base/1'), { recursive: true });
  for (let count = 10 + below(30); count > 0; count--)
    await put(join(root, nameFrom(below)), contentFrom(below));
}

async function filesIn(root: string): Promise<readonly string[]> {
  const entries = [...(await listLocal(root))].filter(([, { type }]) => type === 'file');
  return entries.map(([name]) => join(root, name)).toSorted();
}

/** One thing that a server, an administrator or a restore may do to a file. */
async function change(root: string, below: Numbers): Promise<void> {
  const files = await filesIn(root);
  const path = files[below(files.length)] ?? join(root, 'base/1/1');
  const before = await stat(path).catch(() => null);
  const isDirectory = before?.isDirectory() === true;
  if (before === null || isDirectory) {
    await put(join(root, 'base/1', String(1000 + below(1000))), contentFrom(below));
    return;
  }
  const changes = [
    // A page, as the server writes it.
    async () => {
      const content = await readFile(path);
      content.fill('changed ', Math.max(0, content.length - 8192 * (1 + below(3))));
      await writeFile(path, content);
    },
    // The same size, and a time as if nothing had been: within a tick of the clock, or set back.
    async () => {
      await writeFile(path, Buffer.alloc(before.size, 'other '));
      await utimes(path, before.atime, before.mtime);
    },
    // Another file of the same name, size and time.
    async () => {
      await put(`${path}.new`, Buffer.alloc(before.size, 'another '));
      await utimes(`${path}.new`, before.atime, before.mtime);
      await rename(`${path}.new`, path);
    },
    async () => await utimes(path, 0, below(2)),
    async () => await truncate(path, below(before.size + 1)),
    async () => await writeFile(path, Buffer.concat([await readFile(path), contentFrom(below)])),
    async () => await rm(path),
    async () => await put(join(dirname(path), String(100 + below(100))), contentFrom(below)),
    async () => {
      await rm(path);
      await put(join(path, 'inside'), 'a directory now');
    },
    async () => {
      const parent = dirname(path);
      if (parent === root) return;
      await rm(parent, { recursive: true });
      await put(parent, 'a file now');
    },
  ];
  await changes[below(changes.length)]?.();
}

async function changeOften(root: string, below: Numbers): Promise<void> {
  for (let count = below(15); count > 0; count--) await change(root, below);
}

const observer = {
  copyPlanned: () => {},
  workersChanged: () => {},
  kept: () => {},
  compression: () => {},
  waiting: () => {},
  filling: () => {},
  log: () => {},
  instance: () => {},
  leftover: () => {},
  copied: () => {},
} as Partial<CloneObserver> as CloneObserver;

/** @param stopAt The copy is broken off when so many bytes have come. */
async function copy(
  ifExists: string,
  checksum: boolean,
  stopAt = Infinity,
  walDirectory: string | null = null,
): Promise<Copy | null> {
  const source = join(scratch.path, 'source');
  const stop = new AbortController();
  let bytes = 0;
  const id = randomUUID().replaceAll('-', '');
  await using locks = makeLockSet(id);
  const location = join(scratch.path, 'fast');
  const tablespace = { oid: '16385', name: 'fast', location };
  const run = {
    plan: {
      ...{ id, attempt: 1 },
      spec: {
        target: {
          ...{ dataDirectory: join(scratch.path, 'target'), ifExists },
          ...{ walDirectory, temporaryWalDirectory: null },
          tablespaces: { [location]: join(scratch.path, 'fast copy') },
        },
        transfer: { compression: 'none', checksum },
        // Its files hold no pages.
        method: 'rsync',
        verification: { pages: false, manifest: false, boot: false },
      },
      source: { rsyncd: { ports: '45000-45999', address: null } },
      host: {
        ...{ stallMs: 60_000, leaseMs: 60_000, ports: { first: 5500, last: 5999 }, noSpaceMs: 0 },
        ...{ dataRoots: null, protectedPaths: [] },
      },
    },
    observer: {
      ...observer,
      copied: (step: { readonly worker: number | null; readonly bytes: number }) => {
        bytes += step.worker === null ? 0 : step.bytes;
        if (bytes > stopAt) stop.abort(new Error('broken off'));
      },
    },
    signal: stop.signal,
    transferControl: controlTransfer({ workers: 2, maxRate: null }),
    ...{ locks, filled: new Set(), name: `pgcloned_${id}_1`, sent: () => {}, warn: () => {} },
    ...{ cleanup: { always: () => {} }, lasting: { onFailure: () => {} } },
  } as unknown as CloneRun;
  const facts = {
    ...{ dataDirectory: source, dataDirectoryMode: 0o700, systemIdentifier: '7', timeline: 1 },
    ...{ tablespaceDirectoryName: VERSION_DIRECTORY, tablespaces: [tablespace] },
    ...{ walSegmentBytes: 2 ** 20, settings: {} },
  };
  const claim = await claimTarget(run, (error) => {
    throw error;
  });
  if (claim === null) throw new Error('nothing was refused');
  const ready = {
    ...claim,
    facts,
    // Nothing is written to while it is copied: as if all of it had been listed when it was old enough.
    probe: { now: BigInt(Date.now() + 100_000) * 1_000_000n },
    host: { runner: () => ssh, ssh: () => ssh },
    session: { query: () => Promise.resolve([tablespace]) },
    address: { host: 'db1', port: 5432 },
    tablespaces: await claimTablespaces(run, claim, { ...facts, sameHost: true }),
    sameHost: true,
  } as unknown as Ready;
  if (!ready.data.takesOver) await prepareClonePlace(run, ready, ready.data);
  await mkdir(ready.temporaryWalDirectory, { recursive: true });
  try {
    return await copyFiles(run, ready, { startLsn: '0/1' });
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    return null;
  } finally {
    await rm(ready.temporaryWalDirectory, { recursive: true });
  }
}

/** What a crash of the host leaves: times and sizes are on the disk, and not all that was written. */
async function crash(below: Numbers): Promise<void> {
  await age();
  for (const root of ['target', 'fast copy']) {
    for (const path of await filesIn(join(scratch.path, root))) {
      if (path.includes('.pgcloned-') || below(3) > 0) continue;
      const before = await stat(path);
      const kept = below(before.size + 1);
      await truncate(path, kept);
      await truncate(path, below(4) === 0 ? kept : before.size);
      await utimes(path, before.atime, before.mtime);
    }
  }
}

/** Makes the journal that of a time before the last restart of this host. */
async function age(): Promise<void> {
  const path = join(scratch.path, 'target/.pgcloned-journal');
  if (!existsSync(path)) return;
  const text = await readFile(path, 'utf8');
  await writeFile(path, text.replaceAll(/"bootId":"[^"]*"/g, '"bootId":"another"'));
}

async function expectEqual(from: string, to: string): Promise<void> {
  const here = (await filesIn(to)).filter((path) => !path.includes('.pgcloned-'));
  const there = await filesIn(from);
  expect(here.map((path) => path.slice(to.length))).toEqual(
    there.map((path) => path.slice(from.length)),
  );
  for (const [index, path] of there.entries()) {
    const copied = here[index] ?? '';
    if (!(await readFile(path)).equals(await readFile(copied))) expect.fail(`${copied} is another`);
    const [before, after] = await Promise.all([lstat(path), lstat(copied)]);
    expect([after.mtimeMs, after.mode]).toEqual([before.mtimeMs, before.mode]);
  }
}

test.each(seeds)(
  'an earlier copy becomes the source again: SEED=%i',
  { timeout: 120_000 },
  async (seed) => {
    const below = numbersFrom(seed);
    const [source, target, fast, fastCopy] = ['source', 'target', 'fast', 'fast copy'].map((name) =>
      join(scratch.path, name),
    ) as [string, string, string, string];
    await makeDirectory(fastCopy);
    await makeTree(source, below);
    await put(join(source, 'PG_VERSION'), '15\n');
    await makeTree(join(fast, VERSION_DIRECTORY), below);
    const pairs = [
      [source, target],
      [join(fast, VERSION_DIRECTORY), join(fastCopy, VERSION_DIRECTORY)],
    ] as const;

    const isResync = below(2) === 0;
    if (isResync) {
      // What a standby or an old primary may have become: nothing of it can be trusted.
      for (const [from, to] of pairs) {
        await cp(from, to, { recursive: true, preserveTimestamps: true });
        await changeOften(to, below);
      }
      // A change may have made a directory of a file.
      for (const name of ['global', 'PG_VERSION', 'recovery.signal', 'pg_tblspc'])
        await rm(join(target, name), { recursive: true, force: true });
      await put(join(target, 'global/pg_control'), 'of the old cluster');
      await put(join(target, 'PG_VERSION'), '15\n');
      await put(join(target, 'recovery.signal'), '');
      await mkdir(join(target, 'pg_tblspc'));
      await symlink(fastCopy, join(target, 'pg_tblspc/16385'));
    }
    const how = () => [isResync || below(2) === 0 ? 'resync' : 'fail', below(5) === 0] as const;
    for (let broken = below(3); broken > 0; broken--) {
      await copy(...how(), below(6_000_000));
      for (const [from] of pairs) await changeOften(from, below);
      if (below(3) === 0) await crash(below);
      // What somebody put there meanwhile.
      await put(join(target, 'ghosts/1.1'), 'ghost rows');
    }

    await copy(...how());

    for (const [from, to] of pairs) await expectEqual(from, to);
    expect(existsSync(join(target, 'global/pg_control'))).toBe(false);
  },
);

describe('an unfinished copy', () => {
  /** All different, so that none is found elsewhere. */
  const pagesOf = (name: string, count: number) =>
    Buffer.concat(
      Array.from({ length: count }, (_, page) => Buffer.alloc(8192, `${name} ${String(page)} `)),
    );
  const source = () => join(scratch.path, 'source');

  beforeEach(async () => {
    await put(join(source(), 'PG_VERSION'), '15\n');
    for (const name of ['1', '2', '3'])
      await put(join(source(), 'base/1', name), pagesOf(name, 200));
    await makeDirectory(join(scratch.path, 'fast copy'));
    await makeDirectory(join(scratch.path, 'fast', VERSION_DIRECTORY));
  });

  test('from before a restart of this host is compared, and what is the same is not sent again', async () => {
    await copy('fail', false);
    await age();
    const other = Buffer.alloc(8192, 'other');
    // As if the disk had never got it, with size and time as they should be.
    const damaged = join(scratch.path, 'target/base/1/2');
    const before = await stat(damaged);
    await writeFile(damaged, Buffer.concat([other, (await readFile(damaged)).subarray(8192)]));
    await utimes(damaged, before.atime, before.mtime);

    const again = await copy('fail', false);

    expect(again?.keptBytes).toBe((again?.bytes ?? 0) - 8192);
    await expectEqual(source(), join(scratch.path, 'target'));
  });

  test('loses the WAL that a dead clone has left in it', async () => {
    await copy('fail', false);
    await put(join(scratch.path, 'target', `pgcloned-wal-${'a'.repeat(32)}`, 'wal/1'), 'WAL');

    await copy('fail', false);

    await expectEqual(source(), join(scratch.path, 'target'));
  });

  test.each(['fail', 'resync'])(
    'without a journal, as after writes that the disk has lost, is not trusted with ifExists: %s',
    async (ifExists) => {
      await copy(ifExists, false);
      await rm(join(scratch.path, 'target/.pgcloned-journal'));

      const again = await copy(ifExists, false);

      expect(again?.keptBytes).toBe(0);
      await expectEqual(source(), join(scratch.path, 'target'));
    },
  );
});

test.each(['resync', 'replace'])(
  'a copied data directory, whose links are those of the source, is refused with ifExists: %s',
  async (ifExists) => {
    const [source, target, wal] = ['source', 'target', 'wal'].map((name) =>
      join(scratch.path, name),
    ) as [string, string, string];
    await put(join(wal, '000000010000000000000001'), 'the only copy');
    for (const directory of [source, target]) {
      await put(join(directory, 'PG_VERSION'), '15\n');
      await put(join(directory, 'global/pg_control'), 'of the old cluster');
      await symlink(wal, join(directory, 'pg_wal'));
    }
    await makeDirectory(join(scratch.path, 'fast copy'));

    await expect(copy(ifExists, false, Infinity, wal)).rejects.toMatchObject({
      code: 'TARGET_IN_USE',
      facts: { path: wal, source: join(source, 'pg_wal') },
    });

    expect(await filesIn(wal)).toEqual([join(wal, '000000010000000000000001')]);
    expect(existsSync(join(target, 'global/pg_control'))).toBe(true);
  },
);
