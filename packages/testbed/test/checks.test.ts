/** The checks find what is wrong: a check that finds nothing anywhere would make every other test worthless. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import {
  checkChecksums,
  compareTables,
  findDamage,
  findSecrets,
  installAmcheck,
  leftBehind,
  mountFilesystem,
  runAsPartsUser,
  runsAsRoot,
  scratchDirectory,
  startCluster,
  startPrimary,
  startWriteLoad,
  waitForReplay,
  watchForSecrets,
} from '../src/index.ts';

test('a copy made under the write load compares equal and sound after replay', async () => {
  await using scratch = await scratchDirectory();
  await using primary = await startPrimary();
  await primary.createTablespace('other', join(scratch.path, 'other'));
  await installAmcheck(primary);
  await using load = await startWriteLoad(primary, { tablespaces: ['other'] });
  const copy = join(scratch.path, 'copy');
  await runAsPartsUser([
    ...[
      join(primary.binDirectory, 'pg_basebackup'),
      '-D',
      copy,
      '-R',
      '-X',
      'stream',
      '-c',
      'fast',
    ],
    ...['-T', `${join(scratch.path, 'other')}=${join(scratch.path, 'other copy')}`],
    ...['-h', primary.socketDirectory, '-p', String(primary.port), '-U', 'postgres'],
  ]);
  await using standby = await startCluster(copy);
  await load.stop();
  await waitForReplay(primary, standby);

  expect(await compareTables(primary, standby)).toEqual([]);
  expect(await findDamage(standby)).toBe('');
  await standby.stop();
  expect(await checkChecksums(standby)).toBeGreaterThan(1000);
});

test('the write load says which statement failed', async () => {
  await using primary = await startPrimary();
  const load = await startWriteLoad(primary);

  await primary.query('drop table vacuumed');

  await expect
    .poll(() => primary.query("select from pg_stat_activity where application_name = 'write load'"))
    .toHaveLength(3);
  await expect(load.stop()).rejects.toThrow('"vacuumed" does not exist');
});

test('a table that differs is named', async () => {
  await using first = await startPrimary();
  await using second = await startPrimary();
  for (const server of [first, second]) {
    await server.query('create table kept (n int)');
    await server.query('insert into kept values (1)');
    await server.query('create table changed (n int)');
  }

  await first.query('insert into changed values (1)');
  await second.query('create table added (n int)');

  expect(await compareTables(first, second)).toEqual([
    expect.stringMatching(/^postgres: public.changed: 1 rows.* \/ 0 rows/),
    expect.stringMatching(/^postgres: public.added: missing \/ 0 rows/),
  ]);
});

test('damage is found by amcheck and by checksums', async () => {
  await using primary = await startPrimary();
  await installAmcheck(primary);
  await primary.query('create table damaged as select generate_series(1, 1000) n');
  const [row] = await primary.query<{ path: string }>(
    "select pg_relation_filepath('damaged') as path",
  );
  await primary.stop();
  const file = await open(join(primary.dataDirectory, row?.path ?? ''), 'r+');
  await file.write(Buffer.alloc(64, 0x55), 0, 64, 8192 - 64);
  await file.close();

  await expect(checkChecksums(primary)).rejects.toMatchObject({ code: 'PROCESS_FAILED' });
  await primary.start();
  expect(await findDamage(primary)).toMatch(/damaged/);
});

test('a process, a file, a slot and a session that are left are named', async () => {
  await using scratch = await scratchDirectory();
  await using primary = await startPrimary();
  const name = 'pgcloned_0123_1';
  const process = spawn('sleep', ['1000'], { argv0: name });
  await mkdir(join(scratch.path, name));
  await primary.query(`select pg_create_physical_replication_slot('${name}')`);
  const options = { names: [name], servers: [primary], directories: [scratch.path] };

  const found = await leftBehind({ ...options, withinMs: 0 });
  process.kill();
  await once(process, 'exit');

  expect(found).toEqual([
    expect.stringContaining(`${name} 1000`),
    expect.stringContaining(`file: ${scratch.path}/${name}`),
    expect.stringContaining(`slot ${name}`),
  ]);
  expect(await leftBehind({ ...options, names: ['pgcloned_4567'], slotsKept: [name] })).toEqual([]);
});

test('a secret is found in a command line, a log and a file that others may read', async () => {
  await using scratch = await scratchDirectory();
  const at = (name: string) => join(scratch.path, name);
  await writeFile(at('private'), 'hunter2', { mode: 0o600 });
  await writeFile(at('open'), 'hunter2', { mode: 0o644 });
  await writeFile(at('log'), 'password=hunter2');
  const process = spawn('sleep', ['1000'], { argv0: 'sleep --password=hunter2' });

  const search = { secrets: { password: 'hunter2' }, hiddenIn: [scratch.path] };
  const found = await findSecrets({ ...search, nowhereIn: [at('log')] });
  await using watch = watchForSecrets(search);
  const watched = await watch.stop();
  process.kill();
  await once(process, 'exit');

  expect(found).toHaveLength(4);
  expect(watched.length).toBeGreaterThanOrEqual(2);
  expect(found.join('\n')).not.toContain('hunter2');
  expect(found.join('\n')).toContain('command line');
  expect(found.join('\n')).toContain(at('open'));
  expect(found.join('\n')).not.toContain(at('private'));
});

test.skipIf(!runsAsRoot)('a small filesystem fills up and can be made read-only', async () => {
  await using tmpfs = await mountFilesystem({ type: 'tmpfs', bytes: 1024 * 1024 });
  await using ext4 = await mountFilesystem({ type: 'ext4', bytes: 16 * 1024 * 1024 });

  const tooMuch = writeFile(join(tmpfs.path, 'file'), Buffer.alloc(2 * 1024 * 1024));
  await expect(tooMuch).rejects.toMatchObject({ code: 'ENOSPC' });
  await ext4.remount('ro');
  await expect(writeFile(join(ext4.path, 'file'), '')).rejects.toMatchObject({ code: 'EROFS' });
});
