/** Finds the programs of one major version of PostgreSQL on this host. */
import { access, constants } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError, type Remedy } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';

const PROGRAMS = ['postgres', 'pg_ctl', 'pg_receivewal', 'pg_waldump'];

/** The others get along with some versions besides their own; pg_waldump takes the WAL of any other for damaged. */
const OF_ONE_VERSION = ['postgres', 'pg_waldump'];

/**
 * @param template The path of the directory, with `{major}` where the version goes.
 * @param more Programs that are needed besides.
 * @throws {CloneError} `TOOL_MISSING` if a program is not there, or is one of another version: pg_receivewal and the
 *   server refuse what is not of their own major version (R4.12).
 */
export async function findBinDirectory(
  template: string,
  major: number,
  signal: AbortSignal,
  more: readonly string[] = [],
): Promise<string> {
  const directory = template.replaceAll('{major}', String(major));
  for (const program of [...PROGRAMS, ...more]) {
    const file = join(directory, program);
    try {
      await access(file, constants.X_OK);
    } catch (cause) {
      throw missing(`${file} is not there`, { program, directory, major }, cause);
    }
  }
  for (const program of OF_ONE_VERSION) {
    const { stdout } = await runProcess(
      { file: join(directory, program), args: ['--version'], env: { LC_ALL: 'C' } },
      { signal },
    );
    const version = /(\d+)(?:\.\d+|devel|beta\d+|rc\d+)/.exec(stdout.toString())?.[1];
    if (version === String(major)) continue;
    throw missing(
      `${join(directory, program)} is of ${version === undefined ? 'an unknown version' : `PostgreSQL ${version}`}`,
      { program, directory, major },
    );
  }
  return directory;
}

/** Where the packages of the distributions put them, and what those are called. */
const PACKAGED: readonly (readonly [directory: RegExp, install: (major: string) => string])[] = [
  [/^\/usr\/lib\/postgresql\/\d+\/bin$/, (major) => `apt-get install -y postgresql-${major}`],
  [/^\/usr\/pgsql-\d+\/bin$/, (major) => `dnf install -y postgresql${major}-server`],
];

function installation({
  directory,
  major,
}: {
  readonly directory: string;
  readonly major: number;
}): readonly Remedy[] {
  return PACKAGED.filter(([place]) => place.test(directory)).map(([, install]) => ({
    kind: 'shell',
    on: 'host',
    where: 'root',
    text: install(String(major)),
  }));
}

function missing(
  message: string,
  facts: { readonly major: number; readonly directory: string; readonly program?: string },
  cause?: unknown,
): CloneError {
  return new CloneError('TOOL_MISSING', message, {
    facts,
    hint: `Install PostgreSQL ${String(facts.major)} with its client programs on this host, or set worker.postgresBin to where they are.`,
    remedies: installation(facts),
    cause,
  });
}
