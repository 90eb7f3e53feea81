/**
 * Which libraries of a server this host lacks.
 *
 * Where they lie is known to `pg_config`; without it to the file that every server has beside them, since packages differ:
 * `lib` beside `bin` on Debian and in the packages of the PostgreSQL project for RHEL, `lib/postgresql` or `lib64/pgsql` elsewhere.
 */
import { access, constants, realpath } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { runProcess } from '@pgcloned/process';

/** Part of the server itself: without it no standby streams. */
const ALWAYS_THERE = 'libpqwalreceiver.so';

const BESIDE_BIN = ['lib', 'lib/postgresql', 'lib64/pgsql', 'lib/pgsql', 'lib64/postgresql'];

interface MissingLibrary {
  /** As it is asked for. */
  readonly library: string;
  /** Where it was looked for. */
  readonly paths: readonly string[];
}

/** What a setting such as `shared_preload_libraries` or `listen_addresses` lists. */
export function listIn(setting: string): readonly string[] {
  return setting
    .split(',')
    .map((quoted) => quoted.trim().replace(/^"(.*)"$/, '$1'))
    .filter((one) => one !== '');
}

/**
 * What would act for the source in a detached clone, and may reach others. Their versions know no common way to be kept idle.
 */
const ACTS_FOR_SOURCE: ReadonlyMap<string, string> = new Map([
  ['pg_cron', 'would run the jobs of its source'],
  ...['pglogical', 'spock', 'bdr', 'pgactive'].map(
    (library) => [library, 'would take changes in the place of its source'] as const,
  ),
]);

/** Why a detached clone must not load a library; null: it may. */
export function actsForSource(library: string): string | null {
  return ACTS_FOR_SOURCE.get(basename(library, '.so')) ?? null;
}

/** @param o.searchPath `dynamic_library_path`, in which names without a slash are looked for. */
export async function missingLibraries(
  libraries: readonly string[],
  o: { readonly binDirectory: string; readonly searchPath: string; readonly signal: AbortSignal },
): Promise<readonly MissingLibrary[]> {
  if (libraries.length === 0) return [];
  const libraryDirectory = await findLibraryDirectory(o.binDirectory, o.signal);
  const places = (o.searchPath === '' ? '$libdir' : o.searchPath)
    .split(':')
    .map((place) => place.replace(/^\$libdir/, libraryDirectory));
  const missing: MissingLibrary[] = [];
  for (const library of libraries) {
    const file = library.replace(/^\$libdir/, libraryDirectory).replace(/(?:\.so)?$/, '.so');
    const paths = isAbsolute(file) ? [file] : places.map((place) => join(place, file));
    if (!(await Promise.all(paths.map(isReadable))).includes(true))
      missing.push({ library, paths });
  }
  return missing;
}

async function findLibraryDirectory(binDirectory: string, signal: AbortSignal): Promise<string> {
  const program = join(binDirectory, 'pg_config');
  if (await isExecutable(program)) {
    const { stdout } = await runProcess(
      { file: program, args: ['--pkglibdir'], env: {} },
      { signal },
    );
    return stdout.toString().trim();
  }
  // The server finds its libraries from where it really lies.
  const prefix = dirname(dirname(await realpath(join(binDirectory, 'postgres'))));
  for (const place of BESIDE_BIN) {
    const directory = join(prefix, place);
    if (await isReadable(join(directory, ALWAYS_THERE))) return directory;
  }
  return join(prefix, 'lib');
}

const isReadable = async (path: string) => await mayAccess(path, constants.R_OK);
const isExecutable = async (path: string) => await mayAccess(path, constants.X_OK);

async function mayAccess(path: string, mode: number): Promise<boolean> {
  return await access(path, mode).then(
    () => true,
    () => false,
  );
}
