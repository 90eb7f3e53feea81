/**
 * Proves that a published clone comes up (`verification.boot`): a private server replays its WAL, and then what it holds is
 * looked at (R8.4, R8.5).
 *
 * Nobody else reaches that server, it gets no WAL from the source, and it has ended before anybody may start the clone. A
 * server of our own is used also where we start the replica: whether the source's pg_hba.conf lets a superuser in from here
 * is not for us to rely on.
 */
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { CloneError, toCloneError, type Verdict } from '@pgcloned/contract';
import {
  libpqEnvironment,
  openSession,
  type PrivateServer,
  replicaStatus,
  walBytesBetween,
} from '@pgcloned/postgres';
import { runProcess } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import type { Stop } from '../phases/stop-backup.ts';
import type { Ready } from '../ready.ts';
import { isDetached } from './detached.ts';
import { runPrivately, untilSessions } from './private-run.ts';

const JOBS_MAX = 8;
const NAMED_MAX = 10;

/** R8.5. A file that is missing says nothing by itself: to the server it is a relation without rows. */
const MISSING_FILES = `
  SELECT oid::regclass::text AS "relation", pg_relation_filepath(oid) AS "path"
    FROM pg_class
   WHERE relkind IN ('r', 'i', 't', 'm', 'S') AND relpersistence = 'p'
     AND pg_relation_filepath(oid) IS NOT NULL
     AND (pg_stat_file(pg_relation_filepath(oid), true)).size IS NULL
   ORDER BY oid`;

/** Those of an older version, which pg_upgrade leaves as they were, lack what pg_amcheck calls. */
const CAN_AMCHECK = `
  SELECT EXISTS (SELECT FROM pg_proc
                  WHERE proname = 'verify_heapam' AND pronamespace = extnamespace) AS "isNew"
    FROM pg_extension WHERE extname = 'amcheck'`;

/** What the server warns of as well, once per session. Only here the libraries of this host are asked, ICU's included (R9.1). */
const OTHER_ORDER = `
  SELECT name, recorded, actual
    FROM (SELECT 'its collation' AS name, datcollversion AS recorded,
                 pg_database_collation_actual_version(oid) AS actual
            FROM pg_database WHERE datname = current_database()
           UNION ALL
          SELECT 'collation ' || oid::regcollation::text, collversion, pg_collation_actual_version(oid)
            FROM pg_collation
           WHERE EXISTS (SELECT FROM pg_depend
                          WHERE refclassid = 'pg_collation'::regclass AND refobjid = pg_collation.oid)) AS used
   WHERE recorded <> actual`;

/** None that a role or a database has set may end what takes its time. */
const NO_LIMITS = ['statement_timeout', 'lock_timeout', 'idle_session_timeout'];
const NO_LIMITS_SINCE_17 = ['transaction_timeout'];

/**
 * @param further What is to be done while the server runs, once the clone has stood the test.
 * @returns `skipped` if the server became consistent but takes no sessions for now, which a warning tells.
 * @throws {CloneError} `VERIFICATION_FAILED`; the server has ended then. What `further` throws, if that is `ON_READY_FAILED`.
 */
export async function bootClone(
  run: CloneRun,
  ready: Ready,
  {
    stop,
    further,
  }: { readonly stop: Stop; readonly further: (server: PrivateServer) => Promise<void> },
): Promise<Verdict> {
  try {
    return await runPrivately(run, ready, async (server) => {
      const takesSessions = await waitForSessions(run, ready, server);
      const verdict = takesSessions ? await check(run, ready, { server, stop }) : 'skipped';
      await further(server);
      return verdict;
    });
  } catch (error) {
    run.signal.throwIfAborted();
    const { code, message, facts } = toCloneError(error);
    if (['VERIFICATION_FAILED', 'ON_READY_FAILED', 'INTERNAL'].includes(code)) throw error;
    throw failed(ready, message, facts, error);
  }
}

/** @returns False if it is consistent and yet takes none. */
async function waitForSessions(
  run: CloneRun,
  ready: Ready,
  server: PrivateServer,
): Promise<boolean> {
  const { outcome, recovery } = await untilSessions(run, ready, server);
  if (outcome === 'ready') return true;
  if (outcome === 'ended')
    throw failed(ready, 'the clone ended while it recovered', { log: server.log() });
  if (!recovery.isConsistent || isDetached(run.plan))
    throw failed(ready, 'the clone does not become consistent', { log: server.log() });
  run.warn(
    'the clone is consistent, but takes no sessions as long as transactions with many subtransactions of the time of the copy are open; nothing more was checked (verification.boot)',
  );
  return false;
}

async function check(
  run: CloneRun,
  ready: Ready,
  { server, stop }: { readonly server: PrivateServer; readonly stop: Stop },
): Promise<Verdict> {
  const { name, signal } = run;
  const { user, database } = ready.settings;
  let superuser: string | undefined;
  let databases: readonly string[] = [];
  {
    await using session = await openSession(server.connection({ user, database }), {
      applicationName: name,
      signal,
    });
    const status = await replicaStatus(session, signal);
    const isBehind =
      status.replayLsn === null ||
      walBytesBetween({ from: stop.stopLsn, to: status.replayLsn }) < 0n;
    if (
      status.inRecovery === isDetached(run.plan) ||
      isBehind ||
      status.systemIdentifier !== ready.facts.systemIdentifier
    ) {
      throw failed(ready, 'the clone is not where its backup ends', {
        inRecovery: status.inRecovery,
        replayLsn: status.replayLsn,
        stopLsn: stop.stopLsn,
        systemIdentifier: status.systemIdentifier,
      });
    }
    const [found] = await session.query<{ superuser: string | null; databases: string[] }>(
      `SELECT (SELECT rolname::text FROM pg_roles WHERE rolsuper AND rolcanlogin
                ORDER BY oid LIMIT 1) AS "superuser",
              (SELECT array_agg(datname::text ORDER BY oid) FROM pg_database
                WHERE datallowconn AND datconnlimit <> -2) AS "databases"`,
      [],
      signal,
    );
    superuser = found?.superuser ?? undefined;
    databases = found?.databases ?? [];
  }
  if (superuser === undefined) {
    run.warn(
      'no superuser of the cluster may log in, so the relations of the clone were not looked at (verification.boot)',
    );
    return 'skipped';
  }
  const unchecked: Record<'none' | 'old', string[]> = { none: [], old: [] };
  for (const one of databases) {
    const connection = server.connection({ user: superuser, database: one });
    const amcheck = await lookInto(run, ready, connection);
    if (amcheck === 'new') await runAmcheck(run, ready, connection);
    else unchecked[amcheck].push(one);
  }
  const tellUnchecked = (some: readonly string[], statement: string) => {
    if (some.length === 0) return;
    run.warn(
      `tables and indexes were not checked in ${some.join(', ')}: ${statement} on the source makes it possible (verification.boot)`,
    );
  };
  tellUnchecked(unchecked.none, 'CREATE EXTENSION amcheck');
  tellUnchecked(unchecked.old, 'ALTER EXTENSION amcheck UPDATE');
  return 'passed';
}

/** @returns Whether the database has amcheck, and of a version that pg_amcheck knows. */
async function lookInto(
  { name, signal, warn }: CloneRun,
  ready: Ready,
  connection: ReturnType<PrivateServer['connection']>,
): Promise<'none' | 'old' | 'new'> {
  await using session = await openSession(connection, { applicationName: name, signal });
  const find = async () =>
    await session.query<{ relation: string; path: string }>(MISSING_FILES, [], signal);
  const atFirst = await find();
  // Replay goes on beyond the end of the backup, and may have dropped something in this very moment.
  const now = atFirst.length === 0 ? [] : (await find()).map(({ path }) => path);
  const missing = atFirst.filter(({ path }) => now.includes(path));
  if (missing.length > 0) {
    throw failed(ready, `files of relations are missing in database ${connection.database}`, {
      count: missing.length,
      relations: missing
        .slice(0, NAMED_MAX)
        .map(({ relation, path }) => `${relation} (${path})`)
        .join(', '),
    });
  }
  const orders = await session.query<{ name: string; recorded: string; actual: string }>(
    OTHER_ORDER,
    [],
    signal,
  );
  for (const order of orders)
    warn(
      `text in database ${connection.database} was put in order by version ${order.recorded} of ${order.name}, and this host has ${order.actual}: its indexes may be wrong here (verification.boot)`,
    );
  const [amcheck] = await session.query<{ isNew: boolean }>(CAN_AMCHECK, [], signal);
  if (amcheck === undefined) return 'none';
  return amcheck.isNew ? 'new' : 'old';
}

/** It reads all tables and indexes: no limit in time, and what it does it does in the server, which ends if it hangs up. */
async function runAmcheck(
  { name, signal }: CloneRun,
  ready: Ready,
  connection: ReturnType<PrivateServer['connection']>,
): Promise<void> {
  const { status, stdout, stderr } = await runProcess(
    {
      file: join(ready.binDirectory, 'pg_amcheck'),
      args: [
        '--heapallindexed',
        '--no-password',
        `--jobs=${String(Math.min(availableParallelism(), JOBS_MAX))}`,
        // As a conninfo: it would take some names for one.
        `dbname='${connection.database.replace(/[\\']/g, '\\$&')}'`,
      ],
      env: libpqEnvironment(connection, {
        applicationName: name,
        options: [
          // 18's says by a notice which indexes it skips.
          'client_min_messages=warning',
          ...[...NO_LIMITS, ...(ready.facts.major >= 17 ? NO_LIMITS_SINCE_17 : [])].map(
            (limit) => `${limit}=0`,
          ),
        ]
          .map((setting) => `-c ${setting}`)
          .join(' '),
      }),
    },
    { signal, accept: 'any' },
  );
  if (status === 0) return;
  const said = `${stdout.toString()}${stderr}`.trim();
  throw failed(ready, `pg_amcheck finds faults in database ${connection.database}`, {
    said: said.split('\n').slice(0, NAMED_MAX).join('\n'),
  });
}

function failed(
  { data }: Ready,
  message: string,
  facts: CloneError['facts'],
  cause?: unknown,
): CloneError {
  return new CloneError('VERIFICATION_FAILED', message, {
    facts: { verification: 'boot', dataDirectory: data.final, published: true, ...facts },
    hint: `The clone is complete in ${data.final} and was left stopped. See whether the source has the same fault before you use it, and clone again if it has not.`,
    cause,
  });
}
