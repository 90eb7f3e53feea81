/** What may be written, who may write it, and what a crash in the middle of a swap leaves: with real directories. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, renameSync, rmSync, symlinkSync, watch } from 'node:fs';
import {
  chown,
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
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { runsAsRoot } from '@pgcloned/testbed';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { CloneRun } from '../src/clone-run.ts';
import type { ClonePlan } from '../src/plan.ts';
import { sweepClone } from '../src/sweep.ts';
import { type Claim, claimTablespaces } from '../src/target/claim.ts';
import { guardPath, inspectDirectory, refuseNesting } from '../src/target/guard.ts';
import { makePlace, placeInUse } from '../src/target/layout.ts';
import { makeLockSet } from '../src/target/locks.ts';
import { isPublished, readMarker, unfinishedCloneIn, writeMarker } from '../src/target/marker.ts';
import {
  belongsToAnother,
  externalWal,
  giveUpOldCluster,
  hasTablespace,
  orphansOf,
  refuseUnfitContents,
} from '../src/target/old-cluster.ts';
import { prepareDirectory, removeMarked, removePrepared } from '../src/target/prepare.ts';
import { findReplaced } from '../src/target/replaced.ts';
import { recoverSwap, swapIntoPlace } from '../src/target/swap.ts';

const signal = new AbortController().signal;
const NOBODY = 65_534;
let root = '';

beforeEach(async () => {
  root = await realpath(await mkdtemp(join(tmpdir(), 'engine-target-')));
});

afterEach(async () => {
  await rm(root, { recursive: true });
});

const guard = async (path: string, options: Partial<Parameters<typeof guardPath>[1]> = {}) =>
  await guardPath(path, { dataRoots: [root], protectedPaths: [], ...options });

async function makeDataDirectory(path: string, content = 'old'): Promise<void> {
  await mkdir(join(path, 'global'), { recursive: true });
  await writeFile(join(path, 'PG_VERSION'), '15\n');
  await writeFile(join(path, 'global', 'pg_control'), content);
}

describe('a target', () => {
  test('below a data root is allowed, although its parents are missing', async () => {
    expect(await guard(join(root, 'a/b/c'))).toBe(join(root, 'a/b/c'));
  });

  test.each([
    ['the data root itself', () => root, 'TARGET_OUTSIDE_DATA_ROOTS'],
    ['a directory outside', () => '/var/elsewhere', 'TARGET_OUTSIDE_DATA_ROOTS'],
    ['a name that only begins like the root', () => `${root}-2/x`, 'TARGET_OUTSIDE_DATA_ROOTS'],
    ['a dot directory', () => join(root, '.hidden'), 'TARGET_INVALID'],
    ['a directory below a dot directory', () => join(root, '.hidden/x'), 'TARGET_INVALID'],
  ])('that is %s is refused', async (_case, path, code) => {
    await expect(guard(path())).rejects.toMatchObject({ code, hint: expect.any(String) });
  });

  test('from which a clone is removed while it is looked at is what it will be', async () => {
    await mkdir(join(root, 'going/clone'), { recursive: true });
    const options = {
      dataRoots: [root],
      get protectedPaths() {
        rmSync(join(root, 'going'), { recursive: true, force: true });
        return [];
      },
    };

    expect(await guardPath(join(root, 'going/clone'), options)).toBe(join(root, 'going/clone'));
  });

  test('behind a symlink that leads out of the data roots is refused', async () => {
    await symlink('/var', join(root, 'out'));

    await expect(guard(join(root, 'out/clone'))).rejects.toMatchObject({
      code: 'TARGET_OUTSIDE_DATA_ROOTS',
      facts: expect.objectContaining({ resolvesTo: '/var/clone' }),
    });
  });

  test('that is a link to nowhere is refused', async () => {
    await symlink(join(root, 'missing'), join(root, 'dangling'));

    await expect(guard(join(root, 'dangling'))).rejects.toMatchObject({ code: 'TARGET_INVALID' });
  });

  test('inside another data directory is refused', async () => {
    await makeDataDirectory(join(root, 'main'));

    await expect(guard(join(root, 'main/clone'))).rejects.toMatchObject({ code: 'TARGET_INVALID' });
  });

  test.each(['fast/PG_15_202209061/16384', 'wal'])(
    'inside a part of a cluster that lies elsewhere is refused: %s',
    async (place) => {
      await mkdir(join(root, 'fast/PG_15_202209061/16384'), { recursive: true });
      await mkdir(join(root, 'wal/archive_status'), { recursive: true });

      await expect(guard(join(root, place, 'clone'))).rejects.toMatchObject({
        code: 'TARGET_INVALID',
        message: expect.stringContaining('a part of a cluster'),
      });
    },
  );

  test('that holds our state directory, or lies in it, is refused', async () => {
    const protectedPaths = [join(root, 'state/pgcloned')];

    await expect(guard(join(root, 'state'), { protectedPaths })).rejects.toMatchObject({
      code: 'TARGET_INVALID',
    });
    await expect(guard(join(root, 'state/pgcloned/x'), { protectedPaths })).rejects.toMatchObject({
      code: 'TARGET_INVALID',
    });
  });

  test('below a file is refused', async () => {
    await writeFile(join(root, 'file'), '');

    await expect(guard(join(root, 'file/x'))).rejects.toMatchObject({ code: 'TARGET_INVALID' });
  });

  test('must not lie in another directory of the same clone', () => {
    expect(() => {
      refuseNesting(['/a/b', '/a/b/c']);
    }).toThrow(expect.objectContaining({ code: 'TARGET_INVALID' }));
  });
});

describe('a directory', () => {
  test('is told apart: absent, empty, foreign, a data directory, unfinished', async () => {
    const path = join(root, 'clone');
    expect(await inspectDirectory(path, 'data')).toBe('absent');
    await mkdir(join(path, 'lost+found'), { recursive: true });
    expect(await inspectDirectory(path, 'data')).toBe('empty');
    await writeFile(join(path, 'letter.txt'), '');
    expect(await inspectDirectory(path, 'data')).toBe('foreign');
    await writeMarker(path, 'data', { cloneId: 'a', dataDirectory: path, finished: false });
    expect(await inspectDirectory(path, 'data')).toBe('unfinished');
    await makeDataDirectory(path);
    expect(await inspectDirectory(path, 'data')).toBe('data-directory');
  });

  test("of a tablespace without a table is the server's, or of an unfinished clone", async () => {
    const path = join(root, 'fast', 'PG_15_202209061');
    await mkdir(path, { recursive: true });
    expect(await inspectDirectory(path, 'tablespace')).toBe('empty');

    const marker = { cloneId: 'a', dataDirectory: join(root, 'main'), finished: false };
    await writeMarker(path, 'tablespace', marker);

    expect(await inspectDirectory(path, 'tablespace')).toBe('unfinished');
  });

  test('is still ours when a restart of the host gave its device another number, and no other is', async () => {
    const path = join(root, 'place');
    await mkdir(path);
    await writeMarker(path, 'data', { cloneId: 'a', dataDirectory: path, finished: false });
    const file = join(path, '.pgcloned-marker');
    const marker = JSON.parse(await readFile(file, 'utf8')) as Record<string, string>;

    await writeFile(file, JSON.stringify({ ...marker, device: '1' }));
    expect(await readMarker(path, 'data')).toMatchObject({ cloneId: 'a' });

    for (const birth of ['1', '0', undefined]) {
      await writeFile(file, JSON.stringify({ ...marker, device: '1', birth }));
      expect(await readMarker(path, 'data')).toBeNull();
    }
  });

  test.each([
    ['is no object', () => null],
    ['names what does not lie above it', (marker: object) => ({ ...marker, madeFrom: '/srv' })],
    ['names no path', (marker: object) => ({ ...marker, madeFrom: 42 })],
  ])('whose marker %s is not ours, and nothing is removed for it', async (_case, broken) => {
    const path = join(root, 'place');
    await mkdir(path);
    await writeMarker(path, 'data', { cloneId: 'a', dataDirectory: path, finished: false });
    const file = join(path, '.pgcloned-marker');
    const marker = JSON.parse(await readFile(file, 'utf8')) as object;
    await writeFile(file, JSON.stringify(broken(marker)));

    expect(await readMarker(path, 'data')).toBeNull();
    expect(await inspectDirectory(path, 'data')).toBe('foreign');
    await expect(removeMarked(path, 'data')).rejects.toThrow('no marker');
  });

  test('that was renamed or copied is no longer ours', async () => {
    const path = join(root, 'clone');
    await mkdir(path);
    await writeMarker(path, 'data', { cloneId: 'a', dataDirectory: path, finished: false });

    await rename(path, join(root, 'moved'));

    expect(await readMarker(join(root, 'moved'), 'data')).toBeNull();
    await expect(removeMarked(join(root, 'moved'), 'data')).rejects.toThrow('no marker');
  });

  test('of a finished clone is not taken for an unfinished one, until its data directory turns out to be', async () => {
    const data = join(root, 'clone');
    const wal = join(root, 'wal');
    await makeDataDirectory(data);
    await mkdir(wal);
    await writeMarker(data, 'data', { cloneId: 'a', dataDirectory: data, finished: true });
    await writeMarker(wal, 'wal', { cloneId: 'a', dataDirectory: data, finished: true });
    expect(await unfinishedCloneIn(wal, 'wal')).toBeNull();

    await rm(join(data, 'global', 'pg_control'));

    expect(await unfinishedCloneIn(wal, 'wal')).toMatchObject({ cloneId: 'a' });
  });

  test('of an unfinished clone is emptied for the next one, which marks it as its own', async () => {
    const path = join(root, 'clone');
    const options = { dataDirectory: path, mode: 0o700 };
    await prepareDirectory({ kind: 'data', build: path }, { cloneId: 'a', ...options });
    await writeFile(join(path, 'ghost'), '');

    await prepareDirectory({ kind: 'data', build: path }, { cloneId: 'b', ...options });

    expect(await readdir(path)).toEqual(['.pgcloned-marker']);
    expect(await readMarker(path, 'data')).toMatchObject({ cloneId: 'b' });
  });

  test.each([
    { kind: 'data', left: 'place/.pgcloned-marker.0123456789ab.tmp', state: 'empty' },
    { kind: 'wal', left: 'place/.pgcloned-marker.0123456789ab.tmp', state: 'empty' },
    { kind: 'tablespace', left: '.pgcloned-marker-place.0123456789ab.tmp', state: 'unfinished' },
  ] as const)(
    'of kind $kind that a killed clone was about to mark is $state, and taken by the next one',
    async (was) => {
      const path = join(root, 'place');
      await mkdir(path);
      await writeFile(join(root, was.left), '');

      expect(await inspectDirectory(path, was.kind)).toBe(was.state);

      await prepareDirectory(
        { kind: was.kind, build: path },
        { cloneId: 'b', dataDirectory: path, mode: 0o700 },
      );
      expect(await readMarker(path, was.kind)).toMatchObject({ cloneId: 'b' });
      const names = [...(await readdir(root)), ...(await readdir(path))];
      expect(names.filter((name) => name.endsWith('.tmp'))).toEqual([]);
    },
  );

  test('that the clone of another data directory has left is emptied, whatever is to be kept', async () => {
    const path = join(root, 'fast', 'PG_15_202209061');
    await mkdir(path, { recursive: true });
    await writeFile(join(path, '1'), '');
    const marker = { cloneId: 'a', dataDirectory: join(root, 'other'), finished: false };
    await writeMarker(path, 'tablespace', marker);

    await prepareDirectory(
      { kind: 'tablespace', build: path },
      { cloneId: 'b', dataDirectory: join(root, 'main'), mode: 0o700, keepContents: true },
    );

    expect(await readdir(path)).toEqual([]);
  });

  test('that was made is removed with the parents made for it, and no others', async () => {
    await mkdir(join(root, 'a'));
    const path = join(root, 'a/b/c');
    const prepared = await prepareDirectory(
      { kind: 'data', build: path },
      { cloneId: 'a', dataDirectory: path, mode: 0o700 },
    );

    await removePrepared(prepared);

    expect(await readdir(root)).toEqual(['a']);
    expect(await readdir(join(root, 'a'))).toEqual([]);
  });

  test('in whose place somebody has put a link is neither filled nor emptied, whatever it leads to', async () => {
    const theirs = join(root, 'theirs');
    await makeDataDirectory(join(theirs, 'main'));
    await symlink(join(theirs, 'main'), join(root, 'link'));
    await symlink(theirs, join(root, 'parent'));

    for (const build of [join(root, 'link'), join(root, 'parent', 'main')]) {
      const options = { cloneId: 'a', dataDirectory: build, mode: 0o700 };
      await expect(
        prepareDirectory({ kind: 'temporary-wal', build }, options),
      ).rejects.toMatchObject({
        code: 'TARGET_NOT_WRITABLE',
        message: `a link leads away from ${build}`,
      });
    }

    expect((await readdir(join(theirs, 'main'))).toSorted()).toEqual(['PG_VERSION', 'global']);
  });

  test.runIf(runsAsRoot)(
    'that another user has made, or marked as ours, is not used (as root)',
    async () => {
      const path = join(root, 'place');
      await mkdir(path);
      const options = { cloneId: 'a', dataDirectory: path };
      await writeMarker(path, 'data', { ...options, finished: false });
      expect(await readMarker(path, 'data')).not.toBeNull();

      await chown(join(path, '.pgcloned-marker'), NOBODY, NOBODY);
      expect(await readMarker(path, 'data')).toBeNull();

      await chown(path, NOBODY, NOBODY);
      await expect(
        prepareDirectory({ kind: 'data', build: path }, { ...options, mode: 0o700 }),
      ).rejects.toMatchObject({ message: `${path} belongs to another user` });
    },
  );

  test('whose name leads elsewhere while it is removed is removed all the same, and nothing else', async () => {
    const path = join(root, 'clone');
    const theirs = join(root, 'theirs');
    const options = { cloneId: 'a', dataDirectory: path, mode: 0o700 };
    const prepared = await prepareDirectory({ kind: 'data', build: path }, options);
    for (let number = 0; number < 3000; number += 1) {
      await mkdir(join(path, String(number)));
      await mkdir(join(theirs, String(number)), { recursive: true });
    }
    const begun = once(watch(path), 'change');

    const removing = removePrepared(prepared);
    await begun;
    renameSync(path, join(root, 'moved'));
    symlinkSync(theirs, path);
    const left = readdirSync(join(root, 'moved')).length;
    await removing.catch(() => {});

    expect(left).toBeGreaterThan(10);
    expect(await readdir(theirs)).toHaveLength(3000);
    expect(await readdir(join(root, 'moved'))).toEqual(['.pgcloned-marker']);
  });

  test('that a clone had made when it was killed goes with the next one, also if nobody has heard of it', async () => {
    const path = join(root, 'a/b');
    const prepare = async (cloneId: string) =>
      await prepareDirectory(
        { kind: 'data', build: path },
        { cloneId, dataDirectory: path, mode: 0o700 },
      );
    await prepare('a');

    await removePrepared(await prepare('b'));

    expect(await readdir(root)).toEqual([]);
  });

  test('that cannot be marked is not left for the next clone to stumble over', async () => {
    // Too long for the name of the marker beside it, as a full disk is for its content.
    const build = join(root, 'made', 'x'.repeat(250));

    const preparing = prepareDirectory(
      { kind: 'tablespace', build },
      { cloneId: '1', dataDirectory: root, mode: 0o700 },
    );

    await expect(preparing).rejects.toMatchObject({ code: 'ENAMETOOLONG' });
    expect(await readdir(root)).toEqual([]);
  });
});

describe('locks', () => {
  const lock = async (path: string, cloneId: string) => {
    const locks = makeLockSet(cloneId);
    await locks.take([path], signal);
    return locks;
  };

  test.each([
    ['the same directory', 'clone', 'clone'],
    ['a directory above', 'clone/below', 'clone'],
    ['a directory below', 'clone', 'clone/below'],
  ])('refuse a clone into %s of a running one, and name it', async (_case, held, wanted) => {
    await using _ = await lock(join(root, held), 'first');

    await expect(lock(join(root, wanted), 'second')).rejects.toMatchObject({
      code: 'TARGET_BUSY',
      facts: expect.objectContaining({ holder: 'first' }),
    });
  });

  test('are waited for while a clone that has ended is stopped or removed there', async () => {
    const instance = makeLockSet('first', { ofInstance: true });
    await instance.take([join(root, 'clone')], signal);

    const taken = lock(join(root, 'clone'), 'second');
    const early = await Promise.race([taken.then(() => 'taken'), delay(300).then(() => 'waits')]);
    await instance[Symbol.asyncDispose]();
    await using second = await taken;

    expect(early).toBe('waits');
    expect(second.fds()).toHaveLength(1);
  });

  test('allow a clone beside a running one', async () => {
    await using _ = await lock(join(root, 'clone'), 'first');
    await using other = await lock(join(root, 'clone2'), 'second');

    expect(other.fds()).toHaveLength(1);
  });

  test('leave no file behind', async () => {
    // Other tests lock beside us, so only what names our directory counts.
    const namingUs = async () => {
      const names = (await readdir('/run/lock')).filter((name) => name.startsWith('pgcloned-'));
      const texts = await Promise.all(
        names.map(async (name) => await readFile(join('/run/lock', name), 'utf8').catch(() => '')),
      );
      return texts.filter((text) => text.includes(root)).length;
    };
    {
      await using _ = await lock(join(root, 'clone'), 'first');
      expect(await namingUs()).toBe(1);
    }

    expect(await namingUs()).toBe(0);
  });

  test('are free again once they are let go', async () => {
    {
      await using _ = await lock(join(root, 'clone'), 'first');
    }
    await using again = await lock(join(root, 'clone'), 'second');

    expect(again.fds()).toHaveLength(1);
  });
});

describe('a swap', () => {
  test.runIf(runsAsRoot)(
    'that another user has written down is not carried out (as root)',
    async () => {
      const dataDirectory = join(root, 'clone');
      const theirs = join(root, 'theirs');
      await mkdir(theirs);
      const places = [makePlace('data', theirs, { cloneId: 'a', replaces: true })];
      const old = places[0]?.old ?? '';
      await mkdir(old);
      const journal = `${dataDirectory}.pgcloned-swap.json`;
      await writeFile(journal, JSON.stringify({ cloneId: 'a', places }));
      await chown(journal, NOBODY, NOBODY);

      await expect(recoverSwap(dataDirectory)).rejects.toMatchObject({ code: 'TARGET_INVALID' });

      expect(await readdir(root)).toEqual(expect.arrayContaining([basename(old), 'theirs']));
    },
  );

  const cloneId = 'f'.repeat(32);

  async function arrange() {
    const data = join(root, 'main');
    const wal = join(root, 'wal');
    await makeDataDirectory(data, 'old');
    await mkdir(wal);
    await writeFile(join(wal, 'old'), '');
    const places = [
      makePlace('data', data, { cloneId, replaces: true }),
      makePlace('wal', wal, { cloneId, replaces: true }),
    ];
    for (const { kind, build } of places)
      await prepareDirectory({ kind, build }, { cloneId, dataDirectory: data, mode: 0o700 });
    await mkdir(join(places[0]?.build ?? '', 'global'));
    return { data, wal, places };
  }

  test('that is interrupted before the control file is in place is undone', async () => {
    const { data, wal, places } = await arrange();
    await swapIntoPlace(data, { cloneId, places });

    expect(await recoverSwap(data)).toBe('reverted');

    expect(await readFile(join(data, 'global/pg_control'), 'utf8')).toBe('old');
    expect(await readdir(wal)).toEqual(['old']);
    expect(await recoverSwap(data)).toBe('none');
  });

  test('that is interrupted between two renames is undone', async () => {
    const { data, wal, places } = await arrange();
    await swapIntoPlace(data, { cloneId, places });
    // As if only the old WAL directory had been moved, and nothing yet stood in its place.
    await rename(wal, places[1]?.build ?? '');

    expect(await recoverSwap(data)).toBe('reverted');

    expect(await readFile(join(data, 'global/pg_control'), 'utf8')).toBe('old');
    expect(await readdir(wal)).toEqual(['old']);
  });

  test('whose clone is published is kept', async () => {
    const { data, places } = await arrange();
    await swapIntoPlace(data, { cloneId, places });
    await writeFile(join(data, 'global/pg_control'), 'new');

    expect(await recoverSwap(data)).toBe('kept');

    expect(await readFile(join(data, 'global/pg_control'), 'utf8')).toBe('new');
    expect(await readdir(root)).toContain(`main.pgcloned-old-${cloneId}`);
  });

  test.each([
    ['with the old set beside it', false],
    ['with the rest of an old set whose removal was cut short', true],
  ])('whose clone is published is kept, %s, whatever its marker says', async (_case, oldIsGone) => {
    const { data, wal, places } = await arrange();
    await swapIntoPlace(data, { cloneId, places });
    await writeFile(join(data, 'global/pg_control'), 'new');
    // As after a restart of the host that gave the device another number.
    await rm(join(data, '.pgcloned-marker'));
    if (oldIsGone) await rm(places[0]?.old ?? '', { recursive: true });

    expect(await recoverSwap(data)).toBe('kept');

    expect(await readFile(join(data, 'global/pg_control'), 'utf8')).toBe('new');
    expect(await readdir(wal)).not.toContain('old');
  });

  async function sweepPublished({ start }: { readonly start: boolean }, crash = async () => {}) {
    const { data, wal, places } = await arrange();
    await swapIntoPlace(data, { cloneId, places });
    await writeFile(join(data, 'global/pg_control'), 'new');
    await crash();
    const plan = {
      id: cloneId,
      spec: {
        target: { dataDirectory: data, walDirectory: wal, temporaryWalDirectory: null },
        replica: { start, waitFor: 'files' },
        verification: { boot: false },
      },
      host: { dataRoots: [root], protectedPaths: [] },
    };
    const filled = places.map(({ kind, build, final }) => ({
      ...{ kind, final, path: build },
      madeFrom: null,
    }));
    const options = { becomes: 'queued', filled, signal } as const;
    const { published, leftovers } = await sweepClone(plan as unknown as ClonePlan, options);
    expect(published).toBe(true);
    return { places, leftovers };
  }

  test('whose clone was published before its worker died leaves the old set, which a sweep names', async () => {
    const { places, leftovers } = await sweepPublished({ start: true });

    expect(leftovers.map(({ remedy }) => remedy)).toEqual(
      places.map(({ old }) => `rm -r ${old ?? ''}`),
    );
  });

  test.each([
    ['that was to go next', false, async () => {}],
    [
      'whose removal was cut short',
      true,
      async () => {
        const [set] = await findReplaced(join(root, 'main'), []);
        if (set === undefined) throw new Error('nothing was replaced');
        const dataDirectory = join(root, 'main');
        const marker = { cloneId, dataDirectory, finished: false };
        await writeMarker(set.directories.at(-1)?.path ?? '', 'data', marker);
      },
    ],
  ])('whose worker died leaves no old set %s', async (_case, start, crash) => {
    const { places, leftovers } = await sweepPublished({ start }, crash);

    expect(leftovers).toEqual([]);
    for (const { old } of places) expect(existsSync(old ?? '')).toBe(false);
  });

  test('makes the directories of a published clone its own: none counts as unfinished', async () => {
    const { data, wal, places } = await arrange();
    await swapIntoPlace(data, { cloneId, places });
    expect(await inspectDirectory(wal, 'wal')).toBe('unfinished');
    await writeFile(join(data, 'global/pg_control'), 'new');

    expect(await inspectDirectory(wal, 'wal')).toBe('foreign');
  });

  test('leaves nothing finished behind where it is undone', async () => {
    const { data, places } = await arrange();
    await swapIntoPlace(data, { cloneId, places });
    await recoverSwap(data);

    for (const { kind, build } of places)
      expect(await inspectDirectory(build, kind)).toBe('unfinished');
  });
});

describe('an old cluster that is brought up to date in place', () => {
  const cloneId = 'f'.repeat(32);
  const version = 'PG_15_202209061';

  async function arrange() {
    const data = join(root, 'main');
    await makeDataDirectory(data);
    await mkdir(join(data, 'pg_tblspc'));
    for (const name of ['wal', 'one', 'two'])
      await mkdir(join(root, name, version), { recursive: true });
    await symlink(join(root, 'wal'), join(data, 'pg_wal'));
    await symlink(join(root, 'one'), join(data, 'pg_tblspc/1'));
    await symlink(join(root, 'two'), join(data, 'pg_tblspc/2'));
    return data;
  }

  test('is startable until its pg_control is gone, and no clone is taken for published meanwhile', async () => {
    const data = await arrange();
    const beginJournal = async () => {
      expect(await inspectDirectory(data, 'data')).toBe('data-directory');
      expect(await isPublished(data, cloneId)).toBe(false);
      await writeFile(join(data, 'journal'), '');
      throw new Error('as if we had been killed');
    };

    await expect(giveUpOldCluster(data, { cloneId, beginJournal })).rejects.toThrow('killed');

    expect(await readFile(join(data, 'global/pg_control'), 'utf8')).toBe('old');
    expect(await inspectDirectory(data, 'data')).toBe('data-directory');
  });

  test('is an unfinished clone once it is given up, and the directories that it links to are still known as its own', async () => {
    const data = await arrange();

    await giveUpOldCluster(data, { cloneId, beginJournal: async () => {} });

    expect(await inspectDirectory(data, 'data')).toBe('unfinished');
    expect(await externalWal(data)).toBe(join(root, 'wal'));
    expect(await hasTablespace(data, join(root, 'one'))).toBe(true);
    expect(await hasTablespace(data, join(root, 'three'))).toBe(false);
    // Nothing is left to give up.
    await giveUpOldCluster(data, {
      cloneId,
      beginJournal: () => Promise.reject(new Error('again')),
    });
  });

  test.each(['failed', 'cancelled', 'queued'] as const)(
    'is never removed by the sweep of a clone that is %s, given up or not',
    async (becomes) => {
      const data = await arrange();
      const plan = {
        id: cloneId,
        spec: {
          target: {
            ...{ dataDirectory: data, walDirectory: null, temporaryWalDirectory: null },
            ifExists: 'resync',
          },
        },
        host: { dataRoots: [root], protectedPaths: [] },
      } as unknown as ClonePlan;
      const sweep = async () => await sweepClone(plan, { becomes, filled: [], signal });
      await writeMarker(data, 'data', { cloneId, dataDirectory: data, finished: false });

      expect((await sweep()).published).toBe(false);
      expect(await readFile(join(data, 'global/pg_control'), 'utf8')).toBe('old');

      await giveUpOldCluster(data, { cloneId, beginJournal: async () => {} });
      expect((await sweep()).published).toBe(false);
      expect(await readFile(join(data, 'PG_VERSION'), 'utf8')).toBe('15\n');
    },
  );

  test('has orphans where the clone has no use for what it links to, but never those of the source', async () => {
    const data = await arrange();
    const options = { places: [], tablespaceDirectoryName: version, isOfSource: () => false };
    const paths = async (more: Partial<Parameters<typeof orphansOf>[1]> = {}) =>
      (await orphansOf(data, { ...options, ...more })).map(({ remedy }) =>
        remedy.replace(`rm -r ${root}/`, ''),
      );

    expect(await paths()).toEqual(['wal', `one/${version}`, `two/${version}`]);
    const places = [{ final: join(root, 'wal') }, { final: join(root, 'one', version) }];
    expect(await paths({ places })).toEqual([`two/${version}`]);
    expect(
      await paths({ places, isOfSource: (directory) => directory === join(root, 'two', version) }),
    ).toEqual([]);
    expect(await paths({ isOfSource: () => true })).toEqual([]);
  });

  test('has no orphans where its links are those of another data directory, of which it is a copy', async () => {
    const data = await arrange();
    const other = join(root, 'other');
    await cp(data, other, { recursive: true, verbatimSymlinks: true });
    const marker = { cloneId: 'a', dataDirectory: other, finished: true };
    await writeMarker(join(root, 'wal'), 'wal', marker);
    await writeMarker(join(root, 'one', version), 'tablespace', marker);

    expect(await belongsToAnother(join(root, 'wal'), 'wal', data)).toBe(true);
    expect(await belongsToAnother(join(root, 'one', version), 'tablespace', data)).toBe(true);
    expect(await belongsToAnother(join(root, 'one', version), 'tablespace', other)).toBe(false);
    const options = { places: [], tablespaceDirectoryName: version, isOfSource: () => false };
    expect((await orphansOf(data, options)).map(({ remedy }) => remedy)).toEqual([
      `rm -r ${join(root, 'two', version)}`,
    ]);
    // It may have been the copy that stayed.
    await rm(other, { recursive: true });
    expect(await belongsToAnother(join(root, 'wal'), 'wal', data)).toBe(false);
  });

  describe('whose places are claimed', () => {
    const location = '/srv/source';
    const claim = (data: string): Claim => ({
      data: placeInUse('data', data),
      wal: null,
      temporaryWalDirectory: join(root, 'temporary'),
    });

    async function claimInto(data: string, tablespace: string, source = location) {
      const id = 'c'.repeat(32);
      await using locks = makeLockSet(id);
      const run = {
        plan: {
          id,
          spec: { target: { tablespaces: { [location]: tablespace }, ifExists: 'resync' } },
          host: { dataRoots: [root], protectedPaths: [] },
        },
        ...{ locks, signal },
      } as unknown as CloneRun;
      return await claimTablespaces(run, claim(data), {
        ...{ dataDirectory: '/srv/source data', tablespaceDirectoryName: version },
        ...{ tablespaces: [{ oid: '1', location: source }], sameHost: false },
      });
    }

    test('keeps out of what another clone uses, although it links to it', async () => {
      const data = await arrange();
      expect((await claimInto(data, join(root, 'one')))[0]?.takesOver).toBe(true);

      const other = join(root, 'other');
      await cp(data, other, { recursive: true, verbatimSymlinks: true });
      await writeMarker(join(root, 'one', version), 'tablespace', {
        ...{ cloneId: 'a', dataDirectory: other, finished: true },
      });

      await expect(claimInto(data, join(root, 'one'))).rejects.toMatchObject({
        code: 'TARGET_NOT_EMPTY',
      });
    });

    test('follows no link out of the data roots', async () => {
      const data = await arrange();
      await rm(join(root, 'one', version), { recursive: true });
      await symlink('/usr', join(root, 'one', version));
      await symlink('/usr', join(data, 'inside'));

      for (const source of [location, '/srv/source data/inside'])
        await expect(claimInto(data, join(root, 'one'), source)).rejects.toMatchObject({
          code: 'TARGET_INVALID',
          facts: expect.objectContaining({ resolvesTo: expect.stringMatching(/^\/usr/) }),
        });
    });

    test('is refused where a server runs below it', async () => {
      const data = await arrange();
      const nested = join(data, 'nested');
      await makeDataDirectory(nested);
      await refuseUnfitContents(data);
      const server = spawn('sleep', ['60'], { cwd: nested });
      try {
        await once(server, 'spawn');
        await writeFile(join(nested, 'postmaster.pid'), `${String(server.pid)}\n${nested}\n`);

        await expect(refuseUnfitContents(data)).rejects.toMatchObject({
          code: 'TARGET_IN_USE',
          facts: { path: nested },
        });
      } finally {
        server.kill('SIGKILL');
      }
    });
  });

  test('keeps the temporary WAL of the clone in its WAL directory, and nothing else', async () => {
    const wal = join(root, 'wal');
    const spared = join(wal, `pgcloned-wal-${cloneId}`);
    await mkdir(spared, { recursive: true });
    await writeFile(join(wal, '000000010000000000000001'), '');

    await prepareDirectory(placeInUse('wal', wal), {
      cloneId,
      dataDirectory: join(root, 'main'),
      mode: 0o700,
      spared,
    });

    expect((await readdir(wal)).toSorted()).toEqual([
      '.pgcloned-marker',
      `pgcloned-wal-${cloneId}`,
    ]);
  });
});
