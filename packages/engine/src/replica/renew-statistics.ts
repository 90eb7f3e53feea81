/**
 * What the planner remembers of tables that the files of `onReady` have changed: their most common values, as they were. Whoever
 * may read a column may read these in `pg_stats`, and ANALYZE leaves them to a table that is empty by now. So they go, and
 * come anew.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { openSession, type PrivateServer } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';

const POLL_INTERVAL_MS = 10;

/** As which superuser, and by way of which database. */
interface Way {
  readonly user: string;
  readonly database: string;
}

/** What was changed later than this was changed by the files. */
export async function markBeforeFiles(
  run: CloneRun,
  server: PrivateServer,
  way: Way,
): Promise<string> {
  const [mark] = await ask<{ xid: string }>(
    run,
    server,
    way,
    'SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS "xid"',
  );
  if (mark === undefined || !/^\d+$/.test(mark.xid)) throw new Error('the server told no xid');
  return mark.xid;
}

/** In every database, since a file may go from one to the next. */
export async function renewStatistics(
  run: CloneRun,
  server: PrivateServer,
  { since, ...way }: Way & { readonly since: string },
): Promise<void> {
  // A session tells what it has changed when it ends, which psql does not wait for; and none outlives the files.
  const begunMs = performance.now();
  while ((await ask(run, server, way, END_OTHER_SESSIONS)).length > 0) {
    if (performance.now() - begunMs > run.plan.host.stallMs) throw notEnded();
    await delay(POLL_INTERVAL_MS, undefined, { signal: run.signal });
  }
  for (const { database } of await ask<{ database: string }>(run, server, way, DATABASES))
    await ask(run, server, { ...way, database }, renewSince(since));
}

function notEnded(): CloneError {
  return new CloneError('ON_READY_FAILED', 'sessions that the files of onReady left do not end', {
    hint: 'See what the files begin in the background, such as dblink, mend it, and clone again.',
  });
}

const END_OTHER_SESSIONS = `
  SELECT pg_terminate_backend(pid) FROM pg_stat_activity
   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`;

const DATABASES = `
  SELECT datname::text AS "database" FROM pg_database WHERE datallowconn AND datconnlimit <> -2`;

/**
 * Rows are counted from the start of this server on. TRUNCATE counts none, but gives the table a new row in pg_class. What can be
 * analyzed only through a foreign table is not: that would reach another server.
 */
const renewSince = (xid: string) => `
  DO $$
  DECLARE
    changed oid[];
    one regclass;
  BEGIN
    WITH RECURSIVE found AS (
      SELECT c.oid
        FROM pg_class AS c LEFT JOIN pg_stat_all_tables AS counted ON counted.relid = c.oid
       WHERE c.relkind IN ('r', 'm', 'p')
         AND c.relnamespace <> ALL (
               ARRAY(SELECT n.oid FROM pg_namespace AS n WHERE n.nspname IN ('pg_catalog', 'information_schema')))
         AND (counted.n_tup_ins + counted.n_tup_upd + counted.n_tup_del > 0
              OR age(c.xmin) <= age('${xid}'::xid8::xid))
      UNION
      SELECT i.inhparent FROM pg_inherits AS i JOIN found ON i.inhrelid = found.oid)
    SELECT array_agg(oid) INTO changed FROM found;
    DELETE FROM pg_statistic
     WHERE starelid = ANY (changed)
        OR starelid IN (SELECT indexrelid FROM pg_index WHERE indrelid = ANY (changed));
    DELETE FROM pg_statistic_ext_data
     WHERE stxoid IN (SELECT oid FROM pg_statistic_ext WHERE stxrelid = ANY (changed));
    FOR one IN
      SELECT oid FROM pg_class
       WHERE oid = ANY (changed)
         AND NOT (relhassubclass
                  AND EXISTS (SELECT FROM pg_inherits JOIN pg_foreign_table ON ftrelid = inhrelid))
    LOOP
      BEGIN
        EXECUTE format('ANALYZE %s', one);
      EXCEPTION WHEN OTHERS THEN
        -- An index may be upon a function that does not work so. The planner does without.
        NULL;
      END;
    END LOOP;
  END $$`;

async function ask<Row extends object>(
  { name: applicationName, signal }: CloneRun,
  server: PrivateServer,
  way: Way,
  sql: string,
): Promise<readonly Row[]> {
  await using session = await openSession(server.connection(way), { applicationName, signal });
  return await session.query<Row>(sql, [], signal, { isRepeatable: false });
}
