/**
 * The libraries that the replica would load at its start, and this host lacks.
 *
 * Where they lie is known to `pg_config`; without it to the file that every server has beside them, since packages differ:
 * `lib` beside `bin` on Debian and in the packages of the PostgreSQL project for RHEL, `lib/postgresql` or `lib64/pgsql` elsewhere.
 */
import { access, constants, realpath } from 'node:fs/promises';
import { dirname, isAbsolute, join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';

/** Part of the server itself: without it no standby streams. */
const ALWAYS_THERE = 'libpqwalreceiver.so';

const BESIDE_BIN = ['lib', 'lib/postgresql', 'lib64/pgsql', 'lib/pgsql', 'lib64/postgresql'];

/**
 * @param setting `shared_preload_libraries`.
 * @param o.searchPath `dynamic_library_path`, in which names without a slash are looked for.
 * @returns `TOOL_MISSING` for each that is not there.
 */
export async function missingLibraries(
  setting: string,
  o: { readonly binDirectory: string; readonly searchPath: string; readonly signal: AbortSignal },
): Promise<readonly CloneError[]> {
  const libraries = setting
    .split(',')
    .map((quoted) => quoted.trim().replace(/^"(.*)"$/, '$1'))
    .filter((library) => library !== '');
  if (libraries.length === 0) return [];
  const libraryDirectory = await findLibraryDirectory(o.binDirectory, o.signal);
  const places = (o.searchPath === '' ? '$libdir' : o.searchPath)
    .split(':')
    .map((place) => place.replace(/^\$libdir/, libraryDirectory));
  const missing: CloneError[] = [];
  for (const library of libraries) {
    const file = library.replace(/^\$libdir/, libraryDirectory).replace(/(?:\.so)?$/, '.so');
    const paths = isAbsolute(file) ? [file] : places.map((place) => join(place, file));
    const found = await Promise.all(paths.map(isReadable));
    if (found.includes(true)) continue;
    missing.push(
      new CloneError('TOOL_MISSING', `the library ${library} is not installed on this host`, {
        facts: { setting: 'shared_preload_libraries', library, path: paths.join(', ') },
        hint: 'Install the package of the extension here as on the source; the replica loads it at start.',
      }),
    );
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
