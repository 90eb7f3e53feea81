/**
 * What `verification` promises of a clone: faults are found and named, and nothing else is.
 *
 * The pages themselves are the matter of `packages/engine/test/verification.test.ts`, the WAL of
 * `packages/postgres/test/wal-receiver.test.ts`.
 */
import { existsSync, readFileSync } from 'node:fs';
import { chmod, open, readdir, rm, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { Finished } from '@pgcloned/process';
import {
  adoptServer,
  compareTables,
  freePort,
  leftBehind,
  makeDirectory,
  runAsPartsUser,
  type ScratchDirectory,
  type Source,
  scratchDirectory,
  startCluster,
  startSource,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { runClone, startClone } from './run-clone.ts';

let source: Source;
let scratch: ScratchDirectory;
/** Of a table in the tablespace `fast`, relative to the data directory. */
let table: string;
const at = (name: string) => join(scratch.path, name);

beforeAll(async () => {
  scratch = await scratchDirectory();
  source = await startSource();
  const { primary } = source;
  await primary.createTablespace('fast', at('source fast'));
  await primary.query(
    'create table lying_still tablespace fast as select n, md5(n::text) from generate_series(1, 3000) n',
  );
  await primary.query('create index on lying_still (n)');
  await primary.query('vacuum lying_still');
  // From now on the server writes none of its pages, so that what is written below it stays.
  await primary.query('checkpoint');
  const [row] = await primary.query<{ path: string }>(
    "select pg_relation_filepath('lying_still') as path",
  );
  table = row?.path ?? '';
});
afterAll(async () => {
  await source[Symbol.asyncDispose]();
  await scratch[Symbol.asyncDispose]();
});

const specOf = (name: string, verification: object = {}) => ({
  target: {
    dataDirectory: at(name),
    tablespaces: { [at('source fast')]: at(`${name} fast`) },
  },
  verification,
});

async function flip(path: string, offset: number): Promise<void> {
  await using file = await open(path, 'r+');
  const { buffer } = await file.read({ buffer: Buffer.alloc(1), position: offset });
  await file.write(Buffer.of((buffer[0] ?? 0) ^ 1), 0, 1, offset);
}

test('a page that is corrupt on the source is copied as it is, and named with its file', async () => {
  const path = join(source.primary.dataDirectory, table);
  await flip(path, 3 * 8192 + 5000);

  const { status, result, error } = await runClone(source, specOf('corrupt'));

  await flip(path, 3 * 8192 + 5000);
  expect(error).toBeUndefined();
  expect(status).toBe(0);
  expect(result.result.verification).toMatchObject({
    transfer: 'passed',
    wal: 'passed',
    pages: 'failed',
  });
  expect(result.result.warnings).toContain(
    `block 3 of relation ${table} (file ${table}) is corrupt on the source: its checksum is wrong`,
  );
});

test('a manifest is left that pg_verifybackup accepts, and by which it names what has changed since', async () => {
  const { result, error } = await runClone(source, specOf('sound', { manifest: true }));

  expect(error).toBeUndefined();
  expect(result.result.verification).toMatchObject({ pages: 'passed' });
  expect(await verifyBackup(at('sound'))).toMatchObject({ status: 0, stderr: '' });
  await flip(join(at('sound'), table), 3 * 8192 + 5000);
  const { status, stderr } = await verifyBackup(at('sound'));
  expect(status).toBe(1);
  expect(stderr).toContain(`checksum mismatch for file "${table}"`);
});

test('a manifest fits what took the place of an older cluster, too', async () => {
  const spec = specOf('sound', { manifest: true, pages: false });

  const { result, error } = await runClone(source, {
    ...spec,
    target: { ...spec.target, ifExists: 'replace' },
    replica: { slot: 'for_the_replica' },
  });

  expect(error).toBeUndefined();
  expect(result.result.verification).toMatchObject({ pages: 'skipped' });
  expect(await verifyBackup(at('sound'))).toMatchObject({ status: 0, stderr: '' });
  await source.primary.query("select pg_drop_replication_slot('for_the_replica')");
});

test('a clone that was booted stands its test, and then streams as any other', async () => {
  const { primary } = source;
  await primary.query(`create database "it's = \\ odd"`);
  await primary.query('create extension amcheck', [], "it's = \\ odd");
  // As pg_upgrade leaves it.
  await primary.query("create extension amcheck version '1.2'");
  // As DROP DATABASE leaves it when it is interrupted.
  await primary.query('create database half_dropped');
  await primary.query("update pg_database set datconnlimit = -2 where datname = 'half_dropped'");
  await primary.query('create table words (word text collate "en-x-icu")');
  await primary.query("update pg_collation set collversion = '1' where collname = 'en-x-icu'");
  const spec = specOf('booted', { boot: true });

  const { result, error, name } = await runClone(source, {
    ...spec,
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });

  expect(error).toBeUndefined();
  expect(result.result.verification).toMatchObject({ pages: 'passed', boot: 'passed' });
  expect(result.result.warnings).toEqual(
    expect.arrayContaining([
      expect.stringMatching(/^tables and indexes were not checked in template1: CREATE/),
      expect.stringMatching(/^tables and indexes were not checked in postgres: ALTER EXTENSION/),
      expect.stringMatching(
        /^text in database postgres was put in order by version 1 of collation "en-x-icu"/,
      ),
    ]),
  );
  await primary.query('drop database half_dropped');
  await primary.query('drop table words');
  await primary.query('alter extension amcheck update');
  await using standby = await adoptServer(at('booted'));
  expect(
    await leftBehind({
      names: [name, scratch.path],
      servers: [primary],
      pidsKept: [standby.pid, primary.pid],
    }),
  ).toEqual([]);
  await waitForReplay(primary, standby);
  expect(await compareTables(primary, standby)).toEqual([]);
});

test('a relation whose file is missing is named, and no server is left', async () => {
  const { primary } = source;
  await primary.query('create table lost as select 1');
  await primary.query('checkpoint');
  const [row] = await primary.query<{ path: string }>(
    "select pg_relation_filepath('lost') as path",
  );
  const lost = row?.path ?? '';
  await rm(join(primary.dataDirectory, lost));

  const { error, status } = await runClone(source, specOf('incomplete', { boot: true }));

  await primary.query('drop table lost');
  expect(status).toBe(8);
  expect(error).toMatchObject({
    code: 'VERIFICATION_FAILED',
    phase: 'start-replica',
    facts: { verification: 'boot', published: true, relations: `public.lost (${lost})` },
  });
  expect(existsSync(join(at('incomplete'), 'global/pg_control'))).toBe(true);
  expect(existsSync(join(at('incomplete'), 'postmaster.pid'))).toBe(false);
  // pg_ctl restart would start the next server as ours was: open to everybody who reaches its socket.
  expect(existsSync(join(at('incomplete'), 'postmaster.opts'))).toBe(false);
});

test('of a clone that is killed while it is booted no server is left, and it can be started', async () => {
  const { primary } = source;
  await primary.query('create extension if not exists amcheck');
  const bin = at(`bin/${String(primary.major)}`);
  await makeDirectory(bin);
  for (const program of await readdir(primary.binDirectory))
    await symlink(join(primary.binDirectory, program), join(bin, program));
  await rm(join(bin, 'pg_amcheck'));
  // What the database is set to must not end what takes its time.
  await primary.query("alter database postgres set statement_timeout = '1h'");
  const asked = `'${bin}/psql' -At -c 'show statement_timeout' >'${bin}/timeout'; : >'${bin}/begun'`;
  await writePartsFile(join(bin, 'pg_amcheck'), `#!/bin/sh\n${asked}\nexec sleep 100\n`);
  await chmod(join(bin, 'pg_amcheck'), 0o755);
  const clone = await startClone(source, specOf('killed', { boot: true }), {
    env: { PGCLONED_WORKER_POSTGRES_BIN: at('bin/{major}') },
  });
  await expect.poll(() => existsSync(join(bin, 'begun')), { timeout: 60_000 }).toBe(true);
  expect(readFileSync(join(bin, 'timeout'), 'utf8')).toBe('0\n');

  const server = readFileSync(join(at('killed'), 'postmaster.pid'), 'utf8').split('\n')[0] ?? '';
  const commandLine = readFileSync(`/proc/${server}/cmdline`, 'utf8');
  const [, socketDirectory = ''] = /unix_socket_directories=([^\0]+)/.exec(commandLine) ?? [];
  process.kill(clone.process.pid, 'SIGKILL');
  await clone.ended;

  await expect
    .poll(
      async () =>
        await leftBehind({
          names: [at('killed'), clone.name()],
          servers: [primary],
          pidsKept: [primary.pid],
        }),
      { timeout: 30_000 },
    )
    .toEqual([]);
  // Until somebody has taken note of its end its number looks like that of a living one.
  await expect.poll(() => existsSync(`/proc/${server}`), { timeout: 30_000 }).toBe(false);
  {
    await using standby = await startCluster(at('killed'));
    await waitForReplay(primary, standby);
  }
  expect(existsSync(socketDirectory)).toBe(true);
  const spec = specOf('killed');
  const next = await runClone(source, { target: { ...spec.target, ifExists: 'replace' } });
  expect(next.error).toBeUndefined();
  expect(existsSync(socketDirectory)).toBe(false);
});

async function verifyBackup(directory: string): Promise<Finished> {
  const program = (name: string) => join(source.primary.binDirectory, name);
  const versionOf = async (name: string) =>
    /\d+\.\d+/.exec((await runAsPartsUser([program(name), '--version'])).stdout.toString())?.[0];
  // It takes only its twin, and on a machine they may come from two packages.
  const isTwin = (await versionOf('pg_verifybackup')) === (await versionOf('pg_waldump'));
  return await runAsPartsUser(
    [program('pg_verifybackup'), ...(isTwin ? [] : ['--no-parse-wal']), directory],
    { accept: 'any' },
  );
}
