/** The exclude rules (R1.1–R1.8, R1.13, R1.14) on listings made by hand: one entry per class of file. */
import type { SourceEntry } from '@pgcloned/rsync';
import { describe, expect, test } from 'vitest';
import { selectDataDirectory, selectTablespace } from '../src/copy/select.ts';

const file = (name: string, bytes = 8192): SourceEntry => entry(name, 'file', bytes);
const directory = (name: string): SourceEntry => entry(name, 'directory', 0);
const link = (name: string): SourceEntry => entry(name, 'link', 0);

function entry(name: string, type: SourceEntry['type'], bytes: number): SourceEntry {
  return {
    name,
    type,
    bytes,
    mtimeNs: 0n,
    ctimeNs: 0n,
    inode: 0n,
    mode: 0o600,
    linkTarget: null,
  };
}

const PLAIN = { tablespacesInside: [], logDirectory: 'log' };
const filesOf = (entries: readonly SourceEntry[]) =>
  selectDataDirectory(entries, PLAIN).files.map(({ name }) => name);

describe('a data directory', () => {
  test.each([
    'pgsql_tmp',
    'base/pgsql_tmp/pgsql_tmp123.0',
    'base/5/pgsql_tmp99.1',
    '.DS_Store',
    'base/5/.DS_Store',
    'postgresql.auto.conf.tmp',
    'current_logfiles.tmp',
    'pg_internal.init',
    'global/pg_internal.init',
    'base/5/pg_internal.init.4711',
    'backup_label',
    'tablespace_map',
    'backup_manifest',
    'postmaster.pid',
    'postmaster.opts',
    'backup_label.old',
    'tablespace_map.old',
    'backup_manifest.tmp',
    'standby.signal',
    'recovery.signal',
    'current_logfiles',
    'core',
    'core.4711',
    '.pgcloned-marker',
    'pgcloned.pgpass',
    'pgcloned.postgresql.auto.conf.original',
    'log/postgresql.log',
    'pg_wal/000000010000000000000001',
    'pg_replslot/pgcloned_x/state',
    'pg_stat_tmp/global.stat',
    'pg_dynshmem/mmap.1',
    'pg_notify/0000',
    'pg_serial/0000',
    'pg_snapshots/1',
    'pg_subtrans/0000',
    'base/5/t3_16384',
    'base/5/t3_16384_fsm',
    'base/5/t12_16384_vm.1',
    'global/pg_control',
  ])('leaves out %s', (name) => {
    expect(filesOf([file(name)])).toEqual([]);
  });

  test.each([
    'PG_VERSION',
    'postgresql.conf',
    'postgresql.auto.conf',
    'base/5/1259',
    'base/5/1259.1',
    'base/5/1259_fsm',
    'base/5/PG_VERSION',
    'base/5/pg_filenode.map',
    'global/pg_filenode.map',
    'pg_xact/0000',
    'pg_stat/pgstat.stat',
    'pg_multixact/members/0000',
    't3_16384',
    '#odd name',
    'a\nb',
    '\xff\xfe',
    'sub/standby.signal',
  ])('keeps %j', (name) => {
    expect(filesOf([file(name)])).toEqual([name]);
  });

  test('keeps of an unlogged relation only the init fork, and only if that lies in the same directory', () => {
    const names = ['16400', '16400_init', '16400_fsm', '16400.1', '16401'].map(
      (name) => `base/5/${name}`,
    );

    const kept = filesOf([...names, 'base/6/16400'].map((name) => file(name)));

    expect(kept).toEqual(['base/5/16400_init', 'base/5/16401', 'base/6/16400']);
  });

  test('has the directories that are emptied, also where the source has a link in their place', () => {
    const { directories } = selectDataDirectory([link('pg_wal'), link('pg_stat_tmp')], PLAIN);

    expect(directories).toEqual(
      [
        'pg_dynshmem',
        'pg_notify',
        'pg_replslot',
        'pg_serial',
        'pg_snapshots',
        'pg_stat_tmp',
        'pg_subtrans',
        'pg_tblspc',
        'pg_wal',
      ].toSorted(),
    );
  });

  test('has every directory after its parent', () => {
    const { directories } = selectDataDirectory(
      [
        directory('base/5'),
        directory('base'),
        directory('a/b/c'),
        directory('a/b'),
        directory('a'),
      ],
      PLAIN,
    );

    for (const name of directories) {
      const parent = name.slice(0, name.lastIndexOf('/'));
      if (name.includes('/'))
        expect(directories.indexOf(parent)).toBeLessThan(directories.indexOf(name));
    }
  });

  test('leaves a tablespace that lies inside it to the copy of that tablespace', () => {
    const entries = [file('spaces/a/PG_15_1/5/1'), file('spaces/ab/1'), link('pg_tblspc/16400')];

    const { files } = selectDataDirectory(entries, {
      tablespacesInside: ['spaces/a'],
      logDirectory: null,
    });

    expect(files.map(({ name }) => name)).toEqual(['spaces/ab/1']);
  });

  test('with a foreign link is refused, and the link is named', () => {
    expect(() => filesOf([link('pg_xact')])).toThrow(
      expect.objectContaining({
        code: 'SOURCE_LAYOUT_UNSUPPORTED',
        facts: { links: 'pg_xact', count: 1 },
      }),
    );
  });

  test('with an in-place tablespace is refused', () => {
    expect(() => filesOf([directory('pg_tblspc/16400')])).toThrow(
      expect.objectContaining({ code: 'SOURCE_LAYOUT_UNSUPPORTED' }),
    );
  });
});

test('a tablespace keeps the same of its relations as a data directory', () => {
  const names = ['5/1', '5/2', '5/2_init', '5/t1_2', '5/pg_internal.init', 'pgsql_tmp/x'];

  const { files, directories } = selectTablespace([
    ...names.map((name) => file(name)),
    directory('5'),
    directory('pgsql_tmp'),
  ]);

  expect(files.map(({ name }) => name)).toEqual(['5/1', '5/2_init']);
  expect(directories).toEqual(['5']);
});
