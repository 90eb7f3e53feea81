/**
 * The libraries that databases and sessions of the source need and this host lacks: a replica starts without them, and only
 * whoever uses one hears of it.
 *
 * Each database knows its own functions alone, so each is connected to, one after the other. One that the user may not
 * connect to is named.
 */
import { openSession, type Session } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Findings, Seen } from '../preflight/check.ts';
import { listIn, missingLibraries } from './libraries.ts';
import { configuredSettings } from './required-settings.ts';

/** A source of thousands of databases must not be asked for minutes. */
const DATABASES_MAX = 100;

const LIBRARIES_OF_FUNCTIONS =
  'SELECT DISTINCT probin AS "library" FROM pg_proc WHERE probin IS NOT NULL';

/** Loaded when a session begins, which fails without them. */
const OF_SESSIONS = ['session_preload_libraries', 'local_preload_libraries'];

const HINT = 'Install the package of the extension here as on the source.';

export async function checkDatabaseLibraries(
  run: CloneRun,
  seen: Pick<Seen, 'settings' | 'session' | 'facts' | 'binDirectory' | 'hostConfiguration'>,
  { notice }: Findings,
): Promise<void> {
  const { signal } = run;
  const configured = await configuredSettings(
    seen,
    [...OF_SESSIONS, 'dynamic_library_path'],
    signal,
  );
  const searchPath = configured.dynamic_library_path ?? '';
  const lookFor = async (libraries: readonly string[]) =>
    await missingLibraries(libraries, { binDirectory: seen.binDirectory, searchPath, signal });

  for (const setting of OF_SESSIONS) {
    for (const { library, paths } of await lookFor(listIn(configured[setting] ?? '')))
      notice({
        code: 'LIBRARY_MISSING',
        message: `the library ${library} is not installed on this host: no session can begin on the replica without it (${setting})`,
        facts: { setting, library, path: paths.join(', ') },
        hint: HINT,
      });
  }
  const { users, unseen } = await librariesOfDatabases(run, seen);
  for (const { library, paths } of await lookFor([...users.keys()])) {
    const databases = (users.get(library) ?? []).join(', ');
    notice({
      code: 'LIBRARY_MISSING',
      message: `the library ${library} is not installed on this host: on the replica its functions fail in ${databases}`,
      facts: { library, databases, path: paths.join(', ') },
      hint: HINT,
    });
  }
  if (unseen.length > 0)
    notice({
      code: 'NOT_CHECKED',
      message: `Whether this host has the libraries of all databases is not checked: ${seen.facts.user} cannot connect to ${unseen.join(', ')}.`,
    });
}

/** The databases by the library that they use, and those that could not be looked into. */
async function librariesOfDatabases(
  { name, signal }: CloneRun,
  { settings, session, facts }: Pick<Seen, 'settings' | 'session' | 'facts'>,
): Promise<{
  readonly users: ReadonlyMap<string, readonly string[]>;
  readonly unseen: readonly string[];
}> {
  const users = new Map<string, string[]>();
  const read = async (from: Session, database: string) => {
    const rows = await from.query<{ library: string }>(LIBRARIES_OF_FUNCTIONS, [], signal);
    for (const { library } of rows) users.set(library, [...(users.get(library) ?? []), database]);
  };
  await read(session, facts.database);
  const others = facts.databases
    .map((one) => one.name)
    .filter((database) => database !== facts.database);
  const unseen = others.slice(DATABASES_MAX);
  for (const database of others.slice(0, DATABASES_MAX)) {
    try {
      await using other = await openSession(
        { ...settings, database },
        { applicationName: name, signal },
      );
      await read(other, database);
    } catch {
      signal.throwIfAborted();
      unseen.push(database);
    }
  }
  return { users, unseen };
}
