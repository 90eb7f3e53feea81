/** What is removed of a clone that has ended, and what is not; with directories as clones leave them, and no server. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import { findPostgres, mountFilesystem, runsAsRoot } from '@pgcloned/testbed';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { giveWay, lookAtInstance, measureInstance, removeInstance } from '../src/index.ts';
import type { InstancePlan } from '../src/instance/look.ts';
import { unfinishedCloneIn, writeMarker } from '../src/target/marker.ts';
import type { FilledDirectory } from '../src/target/prepare.ts';

const ID = '0193465f0d6d7a7e8f4d3a1c5b6e7f80';
const OTHER = '0193465f0d6d7a7e8f4d3a1c5b6e7f81';
const VERSION = 'PG_15_202209061';
const binDirectory = findPostgres();
const major = /(\d+)\/bin$/.exec(binDirectory)?.[1] ?? '';
const { signal } = new AbortController();
const options = { source: null, copiedServer: null, onGone: () => {}, signal };

let root: string;

beforeEach(async () => {
  root = await realpath(await mkdtemp(join(tmpdir(), 'instance-')));
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

/** A finished clone with pg_wal and a tablespace elsewhere. */
async function arrange({ cloneId = ID, within = root } = {}) {
  const data = join(within, 'clone', 'main');
  const wal = join(within, 'wal');
  const fast = join(within, 'fast', VERSION);
  for (const path of [join(data, 'global'), join(data, 'base', '1'), join(data, 'pg_tblspc'), wal])
    await mkdir(path, { recursive: true });
  await mkdir(join(fast, '5'), { recursive: true });
  await writeFile(join(data, 'global', 'pg_control'), 'control');
  await writeFile(join(data, 'PG_VERSION'), `${major}\n`);
  await writeFile(join(data, 'base', '1', '1259'), 'rows');
  await symlink(wal, join(data, 'pg_wal'));
  await symlink(join(within, 'fast'), join(data, 'pg_tblspc', '16384'));
  const marker = { cloneId, dataDirectory: data, finished: true };
  await writeMarker(data, 'data', marker);
  await writeMarker(wal, 'wal', marker);
  await writeMarker(fast, 'tablespace', marker);
  const filled: FilledDirectory[] = [
    { kind: 'data', path: data, final: data, madeFrom: join(within, 'clone') },
    { kind: 'wal', path: wal, final: wal, madeFrom: wal },
    { kind: 'tablespace', path: fast, final: fast, madeFrom: join(within, 'fast') },
  ];
  const plan = {
    id: ID,
    spec: {
      target: { dataDirectory: data },
      replica: { slot: null, configuration: 'source' },
    },
    host: { dataRoots: [within], protectedPaths: [], postgresBin: binDirectory },
    filled,
  } as unknown as InstancePlan;
  return { data, wal, fast, plan };
}

test('a clone goes with its WAL, its tablespaces and the parents that were made for it', async () => {
  const { plan } = await arrange();
  await writeFile(join(root, 'somebody else’s'), '');

  expect(await removeInstance(plan, options)).toEqual([]);

  expect(await readdir(root)).toEqual(['somebody else’s']);
  expect(await lookAtInstance(plan)).toEqual({ state: 'absent', port: null });
  expect(await removeInstance(plan, options)).toEqual([]);
});

test('what a crash has left of a removal cannot be started, counts as empty, and is removed by the next call', async () => {
  const { data, wal, fast, plan } = await arrange();
  const stop = new AbortController();
  // As if it had died when the first part was gone.
  Object.defineProperty(plan.filled[1], 'madeFrom', {
    get: () => {
      stop.abort(new Error('died'));
      return wal;
    },
  });

  await expect(removeInstance(plan, { ...options, signal: stop.signal })).rejects.toThrow('died');

  expect(await readdir(join(data, 'global'))).not.toContain('pg_control');
  expect(await unfinishedCloneIn(data, 'data')).toMatchObject({ cloneId: ID });
  expect(await unfinishedCloneIn(fast, 'tablespace')).toMatchObject({ cloneId: ID });
  expect(await lookAtInstance(plan)).toEqual({ state: 'unfinished', port: null });
  expect(await removeInstance(plan, options)).toEqual([]);
  expect(await readdir(root)).toEqual([]);
});

test('what the clone had replaced goes with it if that was a clone, and stays if nobody knows what it was', async () => {
  const { data, wal, plan } = await arrange({ cloneId: OTHER });
  for (const path of [data, wal]) await rename(path, `${path}.pgcloned-old-${ID}`);
  const foreign = `${data}.pgcloned-old-${OTHER}`;
  await cp(`${data}.pgcloned-old-${ID}`, foreign, { recursive: true });
  await rm(join(root, 'fast'), { recursive: true });
  await arrange();
  const gone: string[] = [];

  await removeInstance(plan, { ...options, onGone: (what) => gone.push(what) });

  expect(gone).toEqual([data, wal].map((path) => `replaced directory ${path}.pgcloned-old-${ID}`));
  expect(await readdir(root)).toEqual(['clone']);
  expect(await readdir(join(root, 'clone'))).toEqual([`main.pgcloned-old-${OTHER}`]);
  expect(await readFile(join(foreign, 'global', 'pg_control'), 'utf8')).toBe('control');
});

test('what the clone had replaced and somebody has started since stays as it is', async () => {
  const { data, plan } = await arrange({ cloneId: OTHER });
  const old = `${data}.pgcloned-old-${ID}`;
  await rename(data, old);
  for (const elsewhere of ['wal', 'fast']) await rm(join(root, elsewhere), { recursive: true });
  await arrange();
  const contents = async () =>
    await Promise.all(
      ['.pgcloned-marker', join('global', 'pg_control')].map(
        async (name) => await readFile(join(old, name), 'utf8'),
      ),
    );
  const before = await contents();
  const server = spawn('sleep', ['60'], { cwd: old });
  try {
    await once(server, 'spawn');
    await writeFile(join(old, 'postmaster.pid'), `${String(server.pid)}\n${old}\n`);
    const gone: string[] = [];

    await removeInstance(plan, { ...options, onGone: (what) => gone.push(what) });

    expect(gone).toEqual([]);
  } finally {
    server.kill('SIGKILL');
  }
  expect(await contents()).toEqual(before);
  expect(await readdir(root)).toEqual(['clone']);
  expect(await readdir(join(root, 'clone'))).toEqual([`main.pgcloned-old-${ID}`]);
});

test('a removal that died when only the empty directory was left is brought to its end', async () => {
  const { data, plan } = await arrange();
  await removeInstance(plan, options);
  await mkdir(data, { recursive: true });

  expect(await removeInstance(plan, options)).toEqual([]);

  expect(await readdir(root)).toEqual([]);
});

test('without a journal what carries its marker goes, and the directory itself stays', async () => {
  const { data, plan } = await arrange();

  expect(await removeInstance({ ...plan, filled: [] }, options)).toEqual([]);

  expect(await readdir(root)).toEqual(['clone', 'fast']);
  expect(await readdir(data)).toEqual([]);
  expect(await readdir(join(root, 'fast'))).toEqual([]);
});

test('of a clone that was moved nothing is removed, and its parts are named', async () => {
  const { data, wal, fast, plan } = await arrange();
  await rename(data, join(root, 'moved'));

  const leftovers = await removeInstance(plan, options);

  expect(leftovers.map(({ remedy }) => remedy)).toEqual(
    [wal, fast].map((path) => `# if no other server uses it: rm -r ${path}`),
  );
  expect(await readFile(join(root, 'moved', 'global', 'pg_control'), 'utf8')).toBe('control');
  expect(await readdir(join(root, 'fast', VERSION))).toEqual(['5']);
});

test.runIf(runsAsRoot)(
  'nothing is removed as long as something is mounted inside, which would go, too (as root)',
  async () => {
    const { data, plan } = await arrange();
    const mounted = join(data, 'base', 'a disk');
    await mkdir(mounted);
    await using undo = new AsyncDisposableStack();
    const mount = async (file: string, ...args: readonly string[]) =>
      await runProcess({ file, args, env: {} }, { signal: options.signal });
    await mount('mount', '-t', 'tmpfs', 'tmpfs', mounted);
    undo.defer(async () => {
      await mount('umount', mounted);
    });
    await writeFile(join(mounted, 'backup'), '');

    await expect(removeInstance(plan, options)).rejects.toMatchObject({
      code: 'REMOVAL_FAILED',
      facts: { path: mounted },
    });

    expect(await readdir(mounted)).toEqual(['backup']);
    expect(await lookAtInstance(plan)).toMatchObject({ state: 'stopped' });
  },
);

test('another clone, and a directory without a marker, are left alone and named', async () => {
  const { data, plan } = await arrange({ cloneId: OTHER });

  await expect(removeInstance(plan, options)).rejects.toMatchObject({
    code: 'INSTANCE_CHANGED',
    facts: { dataDirectory: data, found: OTHER },
  });
  await rm(join(data, '.pgcloned-marker'));
  await expect(removeInstance(plan, options)).rejects.toMatchObject({
    code: 'INSTANCE_CHANGED',
    facts: { found: null },
  });

  expect(await readFile(join(data, 'base', '1', '1259'), 'utf8')).toBe('rows');
  expect((await readdir(root)).toSorted()).toEqual(['clone', 'fast', 'wal']);
});

test('a cluster that the clone was about to bring up to date is no clone, although its marker is there', async () => {
  const { data, plan } = await arrange();
  await writeMarker(data, 'data', { cloneId: ID, dataDirectory: data, finished: false });

  expect(await lookAtInstance(plan)).toEqual({ state: 'absent', port: null });
  await expect(removeInstance(plan, options)).rejects.toMatchObject({ code: 'INSTANCE_CHANGED' });

  expect(await readFile(join(data, 'global', 'pg_control'), 'utf8')).toBe('control');
});

test('a tablespace that the clone has only linked to stays and is named with care', async () => {
  const { data, plan } = await arrange();
  const later = join(root, 'later', VERSION);
  await mkdir(later, { recursive: true });
  await symlink(join(root, 'later'), join(data, 'pg_tblspc', '16999'));

  const leftovers = await removeInstance(plan, options);

  expect(leftovers).toEqual([
    {
      what: expect.stringContaining(later),
      remedy: `# if no other server uses it: rm -r ${later}`,
    },
  ]);
  expect(await readdir(root)).toEqual(['later']);
});

test.skipIf(!runsAsRoot)(
  'a clone on a full disk does not give way: it might not come back, and what takes its place is refused',
  async () => {
    await using disk = await mountFilesystem({ type: 'tmpfs', bytes: 1024 ** 2 });
    const { plan } = await arrange({ within: disk.path });
    await expect(writeFile(join(disk.path, 'filler'), Buffer.alloc(1024 ** 2))).rejects.toThrow(
      'ENOSPC',
    );

    const given = giveWay(plan, { beforeStop: () => Promise.resolve(), signal });
    await expect(given).rejects.toMatchObject({
      code: 'TARGET_NO_SPACE',
      facts: { path: disk.path },
    });
  },
);

test.skipIf(!runsAsRoot)(
  'a clone takes what lies in its data directory, its WAL and its tablespaces, each once (needs root)',
  async () => {
    await using filesystem = await mountFilesystem({ type: 'xfs', bytes: 300 * 1024 ** 2 });
    const { data, wal, fast, plan } = await arrange({ within: filesystem.path });
    const inside: FilledDirectory = {
      ...{ kind: 'tablespace', path: join(data, 'inside'), final: join(data, 'inside') },
      madeFrom: null,
    };
    const measure = async () =>
      await measureInstance({ ...plan, filled: [...plan.filled, inside, inside] }, options.signal);
    await mkdir(inside.path);
    const before = await measure();

    await writeFile(join(data, 'base', '1', '1'), Buffer.alloc(65_536, 1));
    await writeFile(join(inside.path, '1'), Buffer.alloc(131_072, 1));
    await writeFile(join(wal, '1'), Buffer.alloc(262_144, 1));
    await writeFile(join(fast, '5', '1'), Buffer.alloc(524_288, 1));
    await writeFile(join(filesystem.path, 'of somebody else'), Buffer.alloc(1_048_576, 1));

    const after = await measure();
    expect((after?.ownBytes ?? 0) - (before?.ownBytes ?? 0)).toBe(15 * 65_536);
    expect(after?.sharedBytes).toBe(0);
  },
);
