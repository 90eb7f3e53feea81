/**
 * Everything that makes the files of a cluster change, appear, shrink and vanish while they are copied.
 *
 * pgbench updates at a fixed, modest rate, and the rest pauses between its rounds, so that a machine of two cores still has
 * time for the clone. Beside pgbench four sessions each repeat one thing that moves files: CREATE and DROP TABLE, TRUNCATE,
 * VACUUM that gives blocks back, and temporary and unlogged tables.
 */
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { startProcess } from '@pgcloned/process';
import pg from 'pg';
import { asPartsUser, partsEnvironment, runAsPartsUser } from './parts-user.ts';
import type { PostgresServer } from './postgres-server.ts';

const TRANSACTIONS_PER_SECOND = 100;
const PAUSE_MS = 20;
/** Between the attempts to reach a server that is away. */
const RESTART_PAUSE_MS = 200;

export interface WriteLoad extends AsyncDisposable {
  /** How often each of the four sessions has gone round, the slowest counts. */
  readonly rounds: () => number;
  /** Settles once nothing writes any more. @throws If a statement failed while the load ran. */
  stop(): Promise<void>;
}

export interface WriteLoadOptions {
  readonly database?: string;
  /** Tables are made in each of these and in the default one. */
  readonly tablespaces?: readonly string[];
  /** pgbench's scale: 1 is 15 MB. */
  readonly scale?: number;
  /** The tables of an earlier load serve this one; those that only grow are emptied. */
  readonly reuseTables?: boolean;
  /** Of pgbench; what the machine cannot do it does not. Default: 100. */
  readonly transactionsPerSecond?: number;
  /** Pause of each session between two rounds, in milliseconds: longer where several loads share a machine. */
  readonly pauseMs?: number;
  /** What the server ends is begun again: for one that is restarted meanwhile. Then no failure is told. */
  readonly outlivesServer?: boolean;
}

/** Settles once each kind of change has happened. Its tables stay: pgbench_*, grown, truncated, vacuumed, unlogged. */
export async function startWriteLoad(
  server: PostgresServer,
  options: WriteLoadOptions = {},
): Promise<WriteLoad> {
  const { database = 'postgres', tablespaces = [], scale = 1 } = options;
  const { pauseMs = PAUSE_MS, outlivesServer = false } = options;
  const { transactionsPerSecond = TRANSACTIONS_PER_SECOND } = options;
  const connection = ['-h', server.socketDirectory, '-p', String(server.port), '-U', 'postgres'];
  const pgbench = join(server.binDirectory, 'pgbench');
  if (options.reuseTables === true) {
    const growing = [
      'pgbench_history',
      ...['', ...tablespaces].map((_, i) => `grown_${String(i)}`),
    ];
    await server.query(`TRUNCATE ${growing.join(', ')}`, [], database);
  } else {
    await runAsPartsUser([
      ...[pgbench, '-i', '-q', '-s', String(scale), '--foreign-keys'],
      ...connection,
      database,
    ]);
    for (const statement of tables(tablespaces)) await server.query(statement, [], database);
  }

  const stopping = new AbortController();
  const sessions = changes(tablespaces).map((change) =>
    repeat(change, { server, database, pauseMs, outlivesServer, signal: stopping.signal }),
  );
  const [file = '', ...args] = asPartsUser([
    ...[pgbench, '-n', '-c', '2', '-T', '86400', '-R', String(transactionsPerSecond)],
    ...connection,
    database,
  ]);
  const startBench = async () =>
    await startProcess({ file, args, env: partsEnvironment, cwd: '/' });
  let bench = await startBench();
  const benchEnded = (async () => {
    for (;;) {
      const { status } = await bench.exited;
      if (stopping.signal.aborted) return null;
      if (!outlivesServer)
        return new Error(`pgbench ended with ${String(status)}: ${bench.stderrTail()}`);
      await delay(RESTART_PAUSE_MS);
      bench = await startBench();
      // Told to stop while it started.
      if (stopping.signal.aborted) await bench.stop();
    }
  })();
  const stop = async () => {
    stopping.abort();
    const [, benchFailure, ...failures] = await Promise.all([
      bench.stop(),
      benchEnded,
      ...sessions.map(({ ended }) => ended),
    ]);
    return [benchFailure, ...failures].find((failure) => failure !== null) ?? null;
  };
  try {
    await Promise.all(sessions.map(({ hasBegun }) => hasBegun));
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    rounds: () => Math.min(...sessions.map(({ rounds }) => rounds())),
    stop: async () => {
      const failure = await stop();
      if (failure !== null) throw failure;
    },
    [Symbol.asyncDispose]: async () => {
      await stop();
    },
  };
}

function tables(tablespaces: readonly string[]): string[] {
  const places = ['', ...tablespaces.map((name) => `TABLESPACE ${pg.escapeIdentifier(name)}`)];
  return [
    ...places.map((place, i) => `CREATE TABLE grown_${String(i)} (id int, filler text) ${place}`),
    'CREATE TABLE truncated (id int primary key, filler text)',
    'CREATE TABLE vacuumed (id int primary key, filler text) WITH (autovacuum_enabled = off)',
    'CREATE UNLOGGED TABLE unlogged (id int primary key, filler text)',
  ];
}

/** For each session: the statements of round `n`. */
function changes(tablespaces: readonly string[]): ((n: number) => string[])[] {
  const rows = (count: number) =>
    `SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, ${String(count)}) i`;
  const places = ['', ...tablespaces.map((name) => `TABLESPACE ${pg.escapeIdentifier(name)}`)];
  return [
    (n) =>
      places.flatMap((place, i) => [
        `DROP TABLE IF EXISTS dropped_${String(n % 3)}_${String(i)}`,
        `CREATE TABLE dropped_${String(n % 3)}_${String(i)} ${place} AS ${rows(200)}`,
        `INSERT INTO grown_${String(i)} ${rows(20)}`,
      ]),
    () => ['TRUNCATE truncated', `INSERT INTO truncated ${rows(1000)}`],
    () => [
      // Of a round that broke off.
      'DELETE FROM vacuumed',
      `INSERT INTO vacuumed ${rows(3000)}`,
      'DELETE FROM vacuumed WHERE id > 10',
      'DELETE FROM vacuumed',
      'VACUUM (TRUNCATE) vacuumed',
    ],
    (n) => [
      `DROP TABLE IF EXISTS temporary_${String(n % 3)}`,
      `CREATE TEMPORARY TABLE temporary_${String(n % 3)} AS ${rows(500)}`,
      'DELETE FROM unlogged',
      `INSERT INTO unlogged ${rows(500)}`,
    ],
  ];
}

function repeat(
  change: (n: number) => string[],
  o: {
    readonly server: PostgresServer;
    readonly database: string;
    readonly pauseMs: number;
    readonly outlivesServer: boolean;
    readonly signal: AbortSignal;
  },
): {
  readonly hasBegun: Promise<void>;
  /** Null if it ended because it was told to. Never rejects. */
  readonly ended: Promise<Error | null>;
  readonly rounds: () => number;
} {
  const begun = Promise.withResolvers<undefined>();
  let rounds = 0;
  const run = async () => {
    const client = new pg.Client({
      host: o.server.socketDirectory,
      port: o.server.port,
      user: 'postgres',
      database: o.database,
      application_name: 'write load',
    });
    // A session that the server ends also rejects its query.
    client.on('error', () => {});
    try {
      await client.connect();
      while (!o.signal.aborted) {
        rounds += 1;
        for (const statement of change(rounds)) await client.query(statement);
        begun.resolve(undefined);
        await delay(o.pauseMs);
      }
    } finally {
      await client.end();
    }
  };
  const runAgain = async () => {
    while (!o.signal.aborted) {
      try {
        await run();
      } catch (error) {
        if (!o.outlivesServer) throw error;
        await delay(RESTART_PAUSE_MS);
      }
    }
  };
  const ended = runAgain().then(
    () => null,
    (error: unknown) => {
      const failure = error instanceof Error ? error : new Error(String(error));
      begun.reject(failure);
      return failure;
    },
  );
  return { hasBegun: begun.promise, ended, rounds: () => rounds };
}
