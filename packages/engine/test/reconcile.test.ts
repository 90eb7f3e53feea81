/**
 * An earlier copy meets a new listing: whatever changed in between, what is kept is what the source has, and what the
 * source does not have goes (R6.9, R6.10). Journal and files are real; the listing is made by hand.
 */
import {
  chmod,
  link,
  mkdir,
  mkdtemp,
  readFile,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import type { SourceEntry } from '@pgcloned/rsync';
import { runsAsRoot } from '@pgcloned/testbed';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { copiedBefore, copiedCluster, openCopyJournal } from '../src/copy/journal.ts';
import {
  listLocal,
  listShort,
  markIncomplete,
  reconcile,
  removeAll,
} from '../src/copy/reconcile.ts';

const SECOND_NS = 1_000_000_000n;
const LISTED_AT_NS = 1_000_000n * SECOND_NS;
const LONG_AGO_NS = LISTED_AT_NS - 100n * SECOND_NS;
const identity = { systemIdentifier: '7', timeline: 1, server: 'db1:5432' };
let directory = '';

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'engine-reconcile-'));
});

afterEach(async () => {
  await rm(directory, { recursive: true });
});

function entry(name: string, fields: Partial<SourceEntry> = {}): SourceEntry {
  return {
    name,
    type: 'file',
    bytes: 8,
    mtimeNs: LONG_AGO_NS,
    ctimeNs: LONG_AGO_NS,
    inode: 1n,
    mode: 0o600,
    linkTarget: null,
    ...fields,
  };
}

const open = async (listedAtNs = LISTED_AT_NS, who = identity) =>
  await openCopyJournal(directory, { identity: who, listedAtNs });

describe('the journal', () => {
  test('vouches for a file that is the same as when it was listed', async () => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }

    await using later = await open();

    expect(later.isContinued).toBe(true);
    expect(later.vouchesFor('pgdata', entry('a'))).toBe(true);
  });

  test.each([
    ['another inode', { inode: 2n }],
    ['another size', { bytes: 9 }],
    ['another modification time', { mtimeNs: LONG_AGO_NS + 1n }],
    ['another change time', { ctimeNs: LONG_AGO_NS + 1n }],
  ])('does not vouch for a file of %s', async (_case, fields) => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }

    await using later = await open();

    expect(later.vouchesFor('pgdata', entry('a', fields))).toBe(false);
  });

  test('does not vouch for a file of the same name in another directory, or that was never begun', async () => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }

    await using later = await open();

    expect(later.vouchesFor('/srv/fast', entry('a'))).toBe(false);
    expect(later.vouchesFor('pgdata', entry('b'))).toBe(false);
  });

  test('does not vouch for a file that changed within a minute before it was listed', async () => {
    const changedAtNs = LISTED_AT_NS - 59n * SECOND_NS;
    const recent = { mtimeNs: changedAtNs, ctimeNs: changedAtNs };
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a', recent)]);
    }

    await using later = await open();

    expect(later.vouchesFor('pgdata', entry('a', recent))).toBe(false);
  });

  test.each([
    ['another cluster', { ...identity, systemIdentifier: '8' }],
    ['another timeline', { ...identity, timeline: 2 }],
    ['another server of the cluster', { ...identity, server: 'db2:5432' }],
  ])('of %s is not believed', async (_case, other) => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }

    await using later = await open(LISTED_AT_NS, other);
    expect(later.vouchesFor('pgdata', entry('a'))).toBe(false);
    expect(await copiedCluster(directory)).toBe(other.systemIdentifier);
    expect(await copiedBefore(directory)).toMatchObject(other);
  });

  test('of a timeline that was left meanwhile is not believed any more', async () => {
    for (const timeline of [1, 2]) {
      await using journal = await open(LISTED_AT_NS, { ...identity, timeline });
      await journal.add('pgdata', [entry('a')]);
    }

    await using later = await open();

    expect(later.vouchesFor('pgdata', entry('a'))).toBe(false);
  });

  test('from before a restart of this host is not believed, but tells of which cluster the files are', async () => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }
    const path = join(directory, '.pgcloned-journal');
    const text = await readFile(path, 'utf8');
    await writeFile(path, text.replace(/"bootId":"[^"]*"/, '"bootId":"another"'));

    await using later = await open();

    expect(later.vouchesFor('pgdata', entry('a'))).toBe(false);
    expect(await copiedCluster(directory)).toBe(identity.systemIdentifier);
  });

  test('of a failover vouches for what was copied since', async () => {
    const promoted = { ...identity, timeline: 2 };
    for (const [who, name] of [
      [identity, 'a'],
      [promoted, 'b'],
    ] as const) {
      await using journal = await open(LISTED_AT_NS, who);
      await journal.add('pgdata', [entry(name)]);
    }

    await using later = await open(LISTED_AT_NS, promoted);

    expect(later.vouchesFor('pgdata', entry('a'))).toBe(false);
    expect(later.vouchesFor('pgdata', entry('b'))).toBe(true);
  });

  test('whose last line is torn is believed up to there, and can be continued', async () => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }
    const path = join(directory, '.pgcloned-journal');
    await writeFile(path, `${await readFile(path, 'utf8')}{"root":"pgdata","fil`);

    {
      await using later = await open();
      await later.add('pgdata', [entry('b')]);
    }
    await using last = await open();

    expect(last.vouchesFor('pgdata', entry('a'))).toBe(true);
    expect(last.vouchesFor('pgdata', entry('b'))).toBe(true);
  });

  test('keeps the batches of workers apart, however many files they have', async () => {
    const names = (worker: number) =>
      Array.from({ length: 10_000 }, (_, index) => `base/${String(worker)}/${String(index)}`);
    {
      await using journal = await open();
      await Promise.all(
        [1, 2, 3].map(async (worker) => {
          await journal.add(
            'pgdata',
            names(worker).map((name) => entry(name)),
          );
        }),
      );
    }

    await using later = await open();

    for (const name of [1, 2, 3].flatMap(names))
      if (!later.vouchesFor('pgdata', entry(name))) expect.fail(`${name} is forgotten`);
  });

  test('is left as it is by who only looks, and loses its torn end to who goes on with it', async () => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }
    const path = join(directory, '.pgcloned-journal');
    const whole = await readFile(path, 'utf8');
    await writeFile(path, `${whole}{"destination":"pg`);

    expect(await copiedBefore(directory)).toMatchObject(identity);
    expect(await copiedCluster(directory)).toBe(identity.systemIdentifier);
    expect(await readFile(path, 'utf8')).toBe(`${whole}{"destination":"pg`);

    await using later = await open();
    expect(later.vouchesFor('pgdata', entry('a'))).toBe(true);
    expect(await readFile(path, 'utf8')).toMatch(/^(\{.*\}\n)+$/);
  });

  test('that a crash of the host has spoilt is none', async () => {
    {
      await using journal = await open();
      await journal.add('pgdata', [entry('a')]);
    }
    const path = join(directory, '.pgcloned-journal');
    await writeFile(path, `${await readFile(path, 'utf8')}\0\0\0\0\n`);

    expect(await copiedCluster(directory)).toBeNull();
    await using later = await open();
    expect(later.vouchesFor('pgdata', entry('a'))).toBe(false);
  });
});

describe('reconciling', () => {
  const LARGE = 4 * 1024 * 1024;

  /** Writes files as a finished transfer leaves them: with the size and the time of the listing. */
  async function put(name: string, bytes: number, mtimeNs = LONG_AGO_NS): Promise<void> {
    const path = join(directory, name);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, Buffer.alloc(bytes, 1));
    const seconds = Number(mtimeNs / SECOND_NS);
    await utimes(path, seconds, seconds);
    await chmod(path, 0o600);
  }

  async function plan(
    entries: readonly SourceEntry[],
    { vouched = true, directories = [] as readonly string[] } = {},
  ) {
    const files = entries.map(({ name, bytes }) => ({ name, bytes }));
    return reconcile({
      selection: { files, directories },
      entries: new Map(entries.map((one) => [one.name, one])),
      local: await listLocal(directory),
      isVouched: () => vouched,
      isSpared: (name) => name.startsWith('ours'),
    });
  }

  test('keeps what is vouched for and untouched, and sends nothing of it', async () => {
    await put('a', 8);

    expect(await plan([entry('a')])).toEqual({
      kept: [{ name: 'a', bytes: 8 }],
      delta: [],
      whole: [],
      obsolete: [],
    });
  });

  test.each([
    ['nobody vouches for', LONG_AGO_NS, 8, false],
    ['was touched here', LONG_AGO_NS + SECOND_NS, 8, true],
    ['has another size here', LONG_AGO_NS, 4, true],
  ])('sends the difference of a file that %s', async (_case, mtimeNs, bytes, vouched) => {
    await put('a', bytes, mtimeNs);

    expect(await plan([entry('a')], { vouched })).toEqual({
      kept: [],
      delta: [{ name: 'a', bytes: 8 }],
      whole: [],
      obsolete: [],
    });
  });

  test('sends what an rsync had given its time but not yet its mode when it was killed', async () => {
    await put('a', 8);
    await chmod(join(directory, 'a'), 0o640);

    const { kept, delta } = await plan([entry('a')]);

    expect(kept).toEqual([]);
    expect(delta).toEqual([{ name: 'a', bytes: 8 }]);
  });

  test('knows which files were begun and whose end is missing', async () => {
    await put('most', LARGE - 8192);
    await put('some', 8192);
    const names = ['most', 'some', 'none'];

    const short = await listShort(
      directory,
      names.map((name) => entry(name, { bytes: LARGE })),
    );

    expect(short).toEqual(['some']);
  });

  test.each([false, true])(
    'writes into no file that has another name, and sends it whole, vouched for: %s',
    async (vouched) => {
      await put('a', 8);
      await link(join(directory, 'a'), join(directory, 'ours-snapshot'));

      const { kept, delta, whole, obsolete } = await plan([entry('a')], { vouched });

      expect(kept).toEqual([]);
      expect(delta).toEqual([]);
      expect(whole).toEqual([{ name: 'a', bytes: 8 }]);
      expect(obsolete).toEqual(['a']);
    },
  );

  test('removes what the source does not have, but nothing of ours', async () => {
    await put('base/5/1', 8);
    await put('base/5/1.1', 8);
    await put('gone/deep/file', 8);
    await put('ours/file', 8);
    await symlink('/nowhere', join(directory, 'link'));

    const { obsolete } = await plan([entry('base/5/1')], { directories: ['base', 'base/5'] });
    await removeAll(directory, obsolete);

    expect([...(await listLocal(directory)).keys()].toSorted()).toEqual([
      'base',
      'base/5',
      'base/5/1',
      'ours',
      'ours/file',
    ]);
  });

  test.runIf(runsAsRoot)(
    'removes nothing if a filesystem is mounted in what would go (as root)',
    async () => {
      await put('base/5/1.1', 8);
      await put('a disk/of another/file', 8);
      const mounted = join(directory, 'a disk', 'of another');
      const { signal } = new AbortController();
      const run = async (file: string, ...args: readonly string[]) =>
        await runProcess({ file, args, env: {} }, { signal });
      await run('mount', '-t', 'tmpfs', 'tmpfs', mounted);
      try {
        await expect(removeAll(directory, ['base/5/1.1', 'a disk'])).rejects.toMatchObject({
          code: 'REMOVAL_FAILED',
          facts: { path: mounted },
        });
        await removeAll(directory, ['base']);
      } finally {
        await run('umount', mounted);
      }

      expect([...(await listLocal(directory)).keys()]).toContain('a disk/of another/file');
    },
  );

  test('removes what is of another kind on the source', async () => {
    await mkdir(join(directory, 'a'));
    await put('pg_wal', 8);

    const { whole, obsolete } = await plan([entry('a')], { directories: ['pg_wal'] });

    expect(whole.map(({ name }) => name)).toEqual(['a']);
    expect(obsolete.toSorted()).toEqual(['a', 'pg_wal']);
  });

  test.each([LONG_AGO_NS, 0n])(
    'a file of the time %s that is about to be sent as a delta no longer looks complete, and can be written',
    async (mtimeNs) => {
      await put('a', 8, mtimeNs);
      await chmod(join(directory, 'a'), 0o400);
      const there = entry('a', { mtimeNs });

      await markIncomplete(directory, [there], new Map([['a', there]]));

      const { kept } = await plan([there]);
      expect(kept).toEqual([]);
      expect((await stat(join(directory, 'a'))).mode & 0o777).toBe(0o600);
    },
  );
});
