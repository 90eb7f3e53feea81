/**
 * Clones on filesystems that are not as usual: with quotas, subvolumes, layers, several mounts, or read-only all of a sudden. What
 * stands against a clone is told before it is begun where it can be known, and else in words of its own.
 */
import { execFileSync } from 'node:child_process';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  leftBehind,
  makeDirectory,
  mountFilesystem,
  type PostgresServer,
  partsUser,
  runsAsRoot,
  scratchDirectory,
  startPrimary,
  type TestFilesystem,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Gate, openGate } from '../kill-matrix/gate.ts';
import type { HoldName } from '../kill-matrix/holds.ts';
import { runClone, startClone } from './run-clone.ts';

const MIB = 1024 ** 2;
const ROWS = 1000;

/** As root. */
const tool = (file: string, ...args: readonly string[]) =>
  execFileSync(file, args, { encoding: 'utf8', stdio: 'pipe' });

const ofParts = (path: string) => tool('chown', partsUser.name, path);

const asked = (dataDirectory: string, more: object = {}) => ({
  method: 'reflink',
  target: { dataDirectory },
  ...more,
});

/** A source on it, with rows to see whether it is well. */
async function startOn(filesystem: TestFilesystem, ...names: readonly string[]) {
  const primary = await startPrimary({ dataDirectory: join(filesystem.path, ...names, 'data') });
  await primary.query(`CREATE TABLE kept AS SELECT generate_series(1, ${String(ROWS)}) AS id`);
  const source = {
    configuration: { local: true, dataDirectory: primary.dataDirectory, user: 'postgres' } as never,
  };
  return { primary, source };
}

const rowsOf = async (server: PostgresServer) =>
  await server.query('SELECT count(*)::int AS rows FROM kept');

async function expectWritable(dataDirectory: string): Promise<void> {
  const clone = await adoptServer(dataDirectory);
  expect(await rowsOf(clone)).toEqual([{ rows: ROWS }]);
  await clone.query('INSERT INTO kept VALUES (0)');
  await clone.stop();
}

type Started = Awaited<ReturnType<typeof startOn>>;

describe.skipIf(!runsAsRoot)('on btrfs with subvolumes, which takes root to mount,', () => {
  const owned = new AsyncDisposableStack();
  let filesystem: TestFilesystem;
  let primary: PostgresServer;
  let source: Started['source'];
  const at = (...names: readonly string[]) => join(filesystem.path, ...names);
  const subvolume = (path: string) => {
    tool('btrfs', 'subvolume', 'create', path);
    ofParts(path);
  };

  beforeAll(async () => {
    filesystem = owned.use(await mountFilesystem({ type: 'btrfs', bytes: 1024 * MIB }));
    subvolume(at('origin'));
    const started = await startOn(filesystem, 'origin');
    primary = owned.use(started.primary);
    source = started.source;
    tool('btrfs', 'quota', 'enable', filesystem.path);
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  test('a quota that is used up is named with what to do, and once it is raised the clone comes', async () => {
    subvolume(at('limited'));
    tool('btrfs', 'qgroup', 'limit', '4m', at('limited'));
    const dataDirectory = at('limited', 'clone', 'data');

    const { error } = await runClone(source, asked(dataDirectory));

    expect(error).toMatchObject({
      code: 'TARGET_NO_SPACE',
      phase: 'copy-files',
      message: expect.stringMatching(/^a quota leaves no room for .* left on .*limited now$/),
      hint: expect.stringMatching(
        /^Raise the quota .* on .*limited, which `btrfs qgroup show -re .*` shows/,
      ),
      facts: { reason: 'EDQUOT', path: at('limited') },
    });
    expect(await readdir(at('limited'))).toEqual([]);
    expect(await rowsOf(primary)).toEqual([{ rows: ROWS }]);
    tool('btrfs', 'qgroup', 'limit', 'none', at('limited'));
    const again = await runClone(source, asked(dataDirectory, { replica: { start: true } }));
    expect(again.error).toBeUndefined();
    await expectWritable(dataDirectory);
    await rm(at('limited', 'clone'), { recursive: true });
  });

  test('a source with a subvolume inside is cloned whole, into one that is there and empty', async () => {
    const nested = join(primary.dataDirectory, 'base');
    await primary.stop();
    tool('mv', nested, at('moved'));
    subvolume(nested);
    tool('cp', '--archive', '--reflink=always', `${at('moved')}/.`, nested);
    await rm(at('moved'), { recursive: true });
    await primary.start();
    subvolume(at('target'));

    const clone = await runClone(source, asked(at('target'), { replica: { start: true } }));

    expect(clone.error).toBeUndefined();
    await expectWritable(at('target'));
    const { error } = await runClone(source, {
      ...asked(at('target')),
      target: { dataDirectory: at('target'), ifExists: 'replace' },
    });
    expect(error).toMatchObject({
      code: 'TARGET_INVALID',
      phase: 'preflight',
      message: `${at('target')} is a mount point or a subvolume and cannot be replaced`,
    });
    expect(await leftBehind({ names: [clone.name], servers: [primary] })).toEqual([]);
  });
});

describe.skipIf(!runsAsRoot)('on XFS that is mounted elsewhere as well, by root,', () => {
  const owned = new AsyncDisposableStack();
  let filesystem: TestFilesystem;
  let primary: PostgresServer;
  let source: Started['source'];
  let gate: Gate;
  let env: Readonly<Record<string, string>>;
  let elsewhere = '';
  let merged = '';

  beforeAll(async () => {
    filesystem = owned.use(await mountFilesystem({ type: 'xfs', bytes: 512 * MIB }));
    const scratch = owned.use(await scratchDirectory());
    const started = await startOn(filesystem, 'origin');
    primary = owned.use(started.primary);
    source = started.source;
    const mount = (path: string, ...args: readonly string[]) => {
      tool('mount', ...args, path);
      owned.defer(() => {
        tool('umount', '--lazy', path);
      });
    };
    elsewhere = join(scratch.path, 'elsewhere');
    await makeDirectory(elsewhere);
    await makeDirectory(join(filesystem.path, 'clones'));
    mount(elsewhere, '--bind', join(filesystem.path, 'clones'));
    // As in a container: what the image has lies in the lower layer.
    const layer = (name: string) => join(filesystem.path, name);
    merged = join(scratch.path, 'merged');
    for (const path of [layer('lower'), layer('upper'), layer('work'), merged])
      await makeDirectory(path);
    const cluster = await runClone(source, asked(join(layer('lower'), 'data')));
    expect(cluster.error).toBeUndefined();
    const layers = `lowerdir=${layer('lower')},upperdir=${layer('upper')},workdir=${layer('work')}`;
    mount(merged, '-t', 'overlay', 'overlay', '-o', layers);
    gate = owned.use(await openGate(join(scratch.path, 'gate')));
    const hold = new URL('../kill-matrix/hold-phases.ts', import.meta.url);
    hold.searchParams.set('socket', gate.socketPath);
    env = { NODE_OPTIONS: `--import=${hold.href}` };
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  test.each<HoldName>(['checkSettings', 'makeDirectories', 'proveWal'])(
    'a target that becomes read-only at %s ends the clone with that word, and the next one comes',
    async (place) => {
      const dataDirectory = join(elsewhere, 'clone', 'data');
      using held = gate.catchAt(place);
      const clone = await startClone(source, asked(dataDirectory), { env });
      await held.held;
      tool('mount', '-o', 'remount,bind,ro', elsewhere);
      held.letGo();
      const { error } = await clone.ended;
      tool('mount', '-o', 'remount,bind,rw', elsewhere);

      expect(error).toMatchObject({
        code: 'TARGET_NOT_WRITABLE',
        message: `the filesystem ${elsewhere} is read-only by now`,
        hint: expect.stringMatching(/dmesg.* mount .* read-write, then clone again/),
      });
      const next = await runClone(source, asked(dataDirectory, { replica: { start: true } }));
      expect(next.error).toBeUndefined();
      await expectWritable(dataDirectory);
      await rm(join(elsewhere, 'clone'), { recursive: true });
      expect(await rowsOf(primary)).toEqual([{ rows: ROWS }]);
    },
  );

  test('a cluster that a layer of an image or a mount keeps in its place is not replaced, which the preflight says', async () => {
    const replace = (dataDirectory: string) => ({
      ...asked(dataDirectory, { transfer: { fallback: 'copy' } }),
      target: { dataDirectory, ifExists: 'replace' },
    });
    const mounted = join(filesystem.path, 'mounted');
    expect((await runClone(source, asked(mounted))).error).toBeUndefined();
    tool('mount', '--bind', mounted, mounted);
    const onMount = await runClone(source, replace(mounted));
    tool('umount', mounted);

    const inLayer = await runClone(source, replace(join(merged, 'data')));

    expect(onMount.error).toMatchObject({
      code: 'TARGET_INVALID',
      phase: 'preflight',
      message: `${mounted} is a mount point and cannot be replaced`,
    });
    expect(inLayer.error).toMatchObject({
      code: 'TARGET_INVALID',
      phase: 'preflight',
      message: expect.stringMatching(/data cannot be moved aside: it belongs to a layer /),
      facts: { reason: 'EXDEV' },
    });
    expect(await readdir(merged)).toEqual(['data']);
    expect((await runClone(source, replace(mounted))).error).toBeUndefined();
    expect((await readdir(filesystem.path)).filter((name) => name.startsWith('.'))).toEqual([]);
  });
});
