/** Whether a standby has what its primary has, and whether its files are sound. */
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { runAsPartsUser } from './parts-user.ts';
import type { PostgresServer } from './postgres-server.ts';

const POLL_MS = 50;
const STALL_MS = 30_000;

/** What a standby answers until it is consistent, and while what it replays is in the way of a query. */
const NOT_NOW = ['57P03', '40001'];

/**
 * Waits until `standby` has replayed what `primary` has written up to now.
 *
 * @throws If replay does not move for `stallMs`, by default half a minute.
 */
export async function waitForReplay(
  primary: PostgresServer,
  standby: PostgresServer,
  { stallMs = STALL_MS }: { readonly stallMs?: number } = {},
): Promise<void> {
  // A record of our own: behind a switch of segments the insert position lies where no record ends, and an idle primary
  // writes the next one only within 15 s.
  const [goal] = await primary.query<{ lsn: string }>(
    "select pg_logical_emit_message(true, 'testbed', '') as lsn",
  );
  let last = '';
  let movedAt = Date.now();
  for (;;) {
    const [state] = await standby
      .query<{ lsn: string; done: boolean }>(
        'select pg_last_wal_replay_lsn() as lsn, pg_last_wal_replay_lsn() >= $1::pg_lsn as done',
        [goal?.lsn],
      )
      .catch((error: unknown) => {
        if (NOT_NOW.includes((error as { code?: string }).code ?? '')) return [];
        throw error;
      });
    if (state?.done === true) return;
    if (state?.lsn !== last) movedAt = Date.now();
    if (Date.now() - movedAt > stallMs) {
      throw new Error(`the standby stands at ${last} and not at ${goal?.lsn ?? ''}`);
    }
    last = state?.lsn ?? '';
    await delay(POLL_MS);
  }
}

/**
 * Compares every row of every ordinary table of every database. Unlogged tables are left out: a standby has none of their
 * rows. Nobody may write meanwhile.
 *
 * @returns One line for each difference.
 */
export async function compareTables(
  first: PostgresServer,
  second: PostgresServer,
): Promise<string[]> {
  const differences: string[] = [];
  const databases = await databasesOf(first);
  if (databases.join() !== (await databasesOf(second)).join()) {
    differences.push('they have other databases');
  }
  for (const database of databases) {
    const [here, there] = await Promise.all([
      tableSums(first, database),
      tableSums(second, database),
    ]);
    for (const table of new Set([...here.keys(), ...there.keys()])) {
      if (here.get(table) === there.get(table)) continue;
      differences.push(
        `${database}: ${table}: ${here.get(table) ?? 'missing'} / ${there.get(table) ?? 'missing'}`,
      );
    }
  }
  return differences;
}

/** Installs amcheck in every database, so that `findDamage` finds it on the standby too. */
export async function installAmcheck(primary: PostgresServer): Promise<void> {
  for (const database of await databasesOf(primary)) {
    await primary.query('create extension if not exists amcheck', [], database);
  }
}

/**
 * Runs `pg_amcheck --heapallindexed` over every database, which needs `installAmcheck`.
 *
 * @returns What it says; nothing if all is well.
 */
export async function findDamage(server: PostgresServer): Promise<string> {
  const { stdout, stderr, status } = await runAsPartsUser(
    [
      join(server.binDirectory, 'pg_amcheck'),
      ...['-h', server.socketDirectory, '-p', String(server.port), '-U', 'postgres'],
      ...(await databasesOf(server)).flatMap((name) => ['--database', name]),
      '--heapallindexed',
    ],
    // 18's says by a notice which indexes it skips.
    { accept: 'any', env: { PGOPTIONS: '-c client_min_messages=warning' } },
  );
  const said = `${stdout.toString()}${stderr}`.trim();
  return status === 0 || said !== '' ? said : `pg_amcheck failed with ${String(status)}`;
}

/**
 * Runs `pg_checksums --check`. The server must have been stopped cleanly.
 *
 * @throws {CloneError} `PROCESS_FAILED` if it cannot run, or finds a bad block.
 * @returns How many blocks it has read.
 */
export async function checkChecksums(server: PostgresServer): Promise<number> {
  const { stdout } = await runAsPartsUser([
    ...[join(server.binDirectory, 'pg_checksums'), '--check', '-D', server.dataDirectory],
  ]);
  return Number(/^Blocks scanned:\s+(\d+)/m.exec(stdout.toString())?.[1]);
}

async function databasesOf(server: PostgresServer): Promise<string[]> {
  const rows = await server.query<{ datname: string }>(
    'select datname from pg_database where datallowconn order by datname',
  );
  return rows.map(({ datname }) => datname);
}

async function tableSums(server: PostgresServer, database: string): Promise<Map<string, string>> {
  const tables = await server.query<{ name: string }>(
    `select format('%I.%I', nspname, relname) as name
       from pg_class c join pg_namespace n on n.oid = relnamespace
      where relkind in ('r', 'm') and relpersistence = 'p'
        and nspname not in ('pg_catalog', 'information_schema')`,
    [],
    database,
  );
  const sums = new Map<string, string>();
  for (const { name } of tables) {
    const [row] = await server.query<{ sum: string }>(
      `select format('%s rows, sum %s', count(*), sum(hashtextextended(t::text, 0))) as sum from only ${name} t`,
      [],
      database,
    );
    sums.set(name, row?.sum ?? '');
  }
  return sums;
}
