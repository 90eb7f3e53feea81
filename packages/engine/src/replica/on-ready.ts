/**
 * The files of `onReady`: SQL that the operator of the host wants to run in every detached clone of a source before anybody
 * sees it, to mask data or to make roles.
 *
 * They run as a superuser, so whoever can write them owns the clone: a file counts only if nobody but root and we can
 * change it or put another in its place.
 */
import { lstat, readlink, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { libpqEnvironment, openSession, type PrivateServer } from '@pgcloned/postgres';
import { quoteForShell, runProcess } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { markBeforeFiles, renewStatistics } from './renew-statistics.ts';

const LINES_SHOWN = 10;

/** In the session of the file: what it has left open would be undone without a word. */
const REFUSE_OPEN_TRANSACTION = `DO $$ BEGIN
  IF pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'the file ends within a transaction that it has not committed'
      USING ERRCODE = 'active_sql_transaction';
  END IF;
END $$`;

/**
 * Classes of errors whose words are about the schema or the server. Others repeat values, such as `invalid input syntax for
 * type integer: "…"`: of these only the SQLSTATE is told.
 */
const WITHOUT_VALUES = /^(?:0A|23|25|28|2B|3D|3F|42|53|55|57|58)/;

const WRITABLE_BY_OTHERS = 0o022;
const STICKY = 0o1000;

/** @throws {CloneError} `CONFIGURATION_INVALID` for the first that may not run. */
export async function checkOnReadyFiles(files: readonly string[]): Promise<void> {
  for (const file of files) {
    const found = await stat(file).catch(() => null);
    if (found?.isFile() !== true) throw unfit(file, file, 'is no file that can be read');
    for (const path of await pathsTo(file)) await refuseForeign(file, path);
  }
}

/** Every directory, link and file that is passed on the way to a file: with each of them another one could be put there. */
async function pathsTo(file: string): Promise<ReadonlySet<string>> {
  const passed = new Set(['/']);
  let at = '/';
  const ahead = file.split('/');
  for (let name = ahead.shift(); name !== undefined; name = ahead.shift()) {
    at = resolve(at, name);
    passed.add(at);
    if (!(await lstat(at)).isSymbolicLink()) continue;
    ahead.unshift(...(await readlink(at)).split('/'));
    const [first] = ahead;
    at = first === '' ? '/' : dirname(at);
  }
  return passed;
}

async function refuseForeign(file: string, path: string): Promise<void> {
  const stats = await lstat(path);
  const isSticky = (stats.mode & STICKY) !== 0 && stats.isDirectory();
  if (stats.uid !== 0 && stats.uid !== process.getuid?.())
    throw unfit(file, path, 'belongs to another user');
  if ((stats.mode & WRITABLE_BY_OTHERS) !== 0 && !isSticky && !stats.isSymbolicLink())
    throw unfit(file, path, 'may be written by others');
}

/** @throws {CloneError} `ON_READY_FAILED` for the first that fails. What it has done by then stays done. */
export async function runOnReadyFiles(
  run: CloneRun,
  ready: Ready,
  server: PrivateServer,
): Promise<void> {
  const { onReady } = run.plan.source;
  if (onReady.length === 0) return;
  // Again: hours may have passed since preflight.
  await checkOnReadyFiles(onReady);
  const { database } = ready.settings;
  const user = await superuserOf(run, ready, server);
  await rollBackPrepared(run, server, { user, database });
  const since = await markBeforeFiles(run, server, { user, database });
  for (const file of onReady) {
    // It may take as long as it likes, but not without a word.
    let isSlow = false;
    const slow = setTimeout(() => {
      isSlow = true;
      run.observer.waiting(`${file} of onReady to come to its end in the clone`);
    }, run.plan.host.stallMs);
    const { status, stderr } = await runProcess(
      {
        file: join(ready.binDirectory, 'psql'),
        args: [
          ...['--no-psqlrc', '--quiet', '--no-password', '--output=/dev/null'],
          ...['--set=ON_ERROR_STOP=1'],
          // With the SQLSTATE.
          '--set=VERBOSITY=verbose',
          '--set=SHOW_CONTEXT=never',
          `--file=${file}`,
          `--command=${REFUSE_OPEN_TRANSACTION}`,
        ],
        cwd: dirname(file),
        env: libpqEnvironment(server.connection({ user, database }), {
          applicationName: run.name,
          options: '-c client_min_messages=error',
        }),
      },
      { signal: run.signal, accept: 'any' },
    ).finally(() => {
      clearTimeout(slow);
      if (isSlow) run.observer.waiting(null);
    });
    if (status === 0) {
      run.observer.log('info', 'a file of onReady has run', { file });
      continue;
    }
    throw new CloneError('ON_READY_FAILED', `${file} failed in the clone`, {
      facts: {
        file,
        exitStatus: status,
        said: withoutRows(stderr).slice(-LINES_SHOWN).join('\n'),
      },
      hint: `Try ${file} on a copy of the source, mend it, and clone again. What is in ${ready.data.final} cannot be started: nothing that the file should have changed is to be seen.`,
    });
  }
  await renewStatistics(run, server, { user, database, since });
}

/** What psql said, but for what it quotes of rows, which nobody shall see: `psql:FILE:LINE: ERROR:  SQLSTATE: …`. */
function withoutRows(stderr: string): readonly string[] {
  return stderr
    .split('\n')
    .filter((line) => /^(?:psql|ERROR|FATAL|PANIC):/.test(line))
    .map((line) => {
      const [, place = line, sqlState = ''] =
        /^((?:psql:.*?: )?[A-Z]+: {2}(\w{5}))(?:: |$)/.exec(line) ?? [];
      return WITHOUT_VALUES.test(sqlState) ? line : place;
    });
}

/**
 * What the source had prepared for a commit in two phases comes with the copy. Its locks would hold up the files for ever, as
 * whoever decides about it knows nothing of the clone; and its rows, which no file sees, would come forth as they were.
 */
async function rollBackPrepared(
  { name: applicationName, signal, warn }: CloneRun,
  server: PrivateServer,
  { user, database }: { readonly user: string; readonly database: string },
): Promise<void> {
  const query = async <Row extends object>(of: string, sql: string) => {
    await using session = await openSession(server.connection({ user, database: of }), {
      applicationName,
      signal,
    });
    return await session.query<Row>(sql, [], signal, { isRepeatable: false });
  };
  const prepared = await query<{ of: string; statement: string }>(
    database,
    `SELECT database::text AS "of", format('ROLLBACK PREPARED %L', gid) AS "statement"
       FROM pg_prepared_xacts`,
  );
  // None ends but in its own database.
  for (const { of, statement } of prepared) await query(of, statement);
  if (prepared.length > 0)
    warn(
      `${String(prepared.length)} prepared transactions of the source were rolled back in the clone, before its onReady files ran`,
    );
}

async function superuserOf(run: CloneRun, ready: Ready, server: PrivateServer): Promise<string> {
  await using session = await openSession(server.connection(ready.settings), {
    applicationName: run.name,
    signal: run.signal,
  });
  const [found] = await session.query<{ name: string }>(
    `SELECT rolname::text AS "name" FROM pg_roles WHERE rolsuper AND rolcanlogin
      ORDER BY oid LIMIT 1`,
    [],
    run.signal,
  );
  if (found !== undefined) return found.name;
  throw new CloneError('ON_READY_FAILED', 'no superuser of the clone may log in', {
    hint: 'Give one superuser of the source LOGIN: the files of onReady run as it.',
  });
}

function unfit(file: string, path: string, reason: string): CloneError {
  return new CloneError('CONFIGURATION_INVALID', `onReady: ${path} ${reason}`, {
    facts: { file, path },
    hint: `It runs as a superuser of the clone: only root and the user that runs pgcloned may own or write it and the directories above it. See \`ls -ld ${quoteForShell(path)}\`.`,
  });
}
