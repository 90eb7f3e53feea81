/**
 * Proves that a published clone comes up (`verification.boot`): a private server replays its WAL, and then what it holds is
 * looked at (R8.4, R8.5).
 *
 * Nobody else reaches that server, it gets no WAL from the source, and it has ended before anybody may start the clone as
 * a standby. A server of our own is used also where we start the replica: whether the source's pg_hba.conf lets a superuser in
 * from here is not for us to rely on.
 */
import { lstat, mkdir, readFile, rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, toCloneError, type Verdict } from '@pgcloned/contract';
import {
  isServerRunning,
  libpqEnvironment,
  openSession,
  type PrivateServer,
  replicaStatus,
  startPrivateServer,
  walBytesBetween,
} from '@pgcloned/postgres';
import { runProcess } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import type { Stop } from '../phases/stop-backup.ts';
import type { Ready } from '../ready.ts';
import { pathBesideLock } from '../target/locks.ts';
import { readRecovery, startupActivity } from './recovery.ts';

const POLL_INTERVAL_MS = 50;
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
 * @returns `skipped` if the server became consistent but takes no sessions for now, which a warning tells.
 * @throws {CloneError} `VERIFICATION_FAILED`; the server has ended then, and the clone is as it was found.
 */
export async function bootClone(run: CloneRun, ready: Ready, stop: Stop): Promise<Verdict> {
  const dataDirectory = ready.data.final;
  try {
    const directory = await makeDirectory(run, dataDirectory);
    const server = await startPrivateServer({
      binDirectory: ready.binDirectory,
      dataDirectory,
      configFile: ready.hostConfiguration,
      directory,
      inheritedFds: run.locks.fds(),
    });
    let verdict: Verdict;
    try {
      verdict = (await waitForSessions(run, ready, server))
        ? await check(run, ready, { server, stop })
        : 'skipped';
    } catch (error) {
      await server.abandon();
      await forgetOptions(dataDirectory);
      throw error;
    }
    await server.stop();
    await forgetOptions(dataDirectory);
    return verdict;
  } catch (error) {
    run.signal.throwIfAborted();
    const { code, message, facts } = toCloneError(error);
    if (code === 'VERIFICATION_FAILED' || code === 'INTERNAL') throw error;
    throw failed(ready, message, facts, error);
  }
}

/** What a killed process has left. Whoever calls holds the lock on the data directory. */
export async function removeBootDirectory(dataDirectory: string): Promise<void> {
  const directory = await pathBesideLock(dataDirectory, 'boot');
  const found = await lstat(directory).catch(() => null);
  if (found?.isDirectory() !== true || found.uid !== process.getuid?.()) return;
  await forgetOptions(dataDirectory);
  await rm(directory, { recursive: true });
}

/** `pg_ctl restart` starts a server that does not run with the options of the last one: ours lets everybody in, and streams not. */
async function forgetOptions(dataDirectory: string): Promise<void> {
  const file = join(dataDirectory, 'postmaster.opts');
  const options = await readFile(file, 'utf8').catch(() => '');
  if (options.includes(await pathBesideLock(dataDirectory, 'boot'))) await rm(file);
}

/** Beside the lock, as a socket needs a short path; others may not look into it. */
async function makeDirectory(run: CloneRun, dataDirectory: string): Promise<string> {
  const directory = await pathBesideLock(dataDirectory, 'boot');
  run.cleanup.always({
    what: `directory ${directory}`,
    remedy: `rm -r ${directory}`,
    undo: async () => {
      await removeBootDirectory(dataDirectory);
    },
  });
  await mkdir(directory, { mode: 0o700 });
  return directory;
}

/** @returns False if it is consistent and yet takes none. */
async function waitForSessions(
  { plan, signal, warn }: CloneRun,
  ready: Ready,
  server: PrivateServer,
): Promise<boolean> {
  const dataDirectory = ready.data.final;
  let hasEnded = false;
  void server.exited.then(() => {
    hasEnded = true;
  });
  let mark = '';
  let movedAtMs = performance.now();
  for (;;) {
    signal.throwIfAborted();
    const postmaster = await isServerRunning(dataDirectory);
    if (postmaster?.pid === server.pid && postmaster.status === 'ready') return true;
    if (hasEnded) throw failed(ready, 'the clone ended while it recovered', { log: server.log() });
    const recovery = await readRecovery(dataDirectory, signal);
    const now = JSON.stringify([postmaster?.status, recovery, await startupActivity(server.pid)]);
    if (now !== mark) movedAtMs = performance.now();
    mark = now;
    if (performance.now() - movedAtMs > plan.host.stallMs) {
      if (!recovery.isConsistent)
        throw failed(ready, 'the clone does not become consistent', { log: server.log() });
      warn(
        'the clone is consistent, but takes no sessions as long as transactions with many subtransactions of the time of the copy are open; nothing more was checked (verification.boot)',
      );
      return false;
    }
    await delay(POLL_INTERVAL_MS, undefined, { signal });
  }
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
      !status.inRecovery ||
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
