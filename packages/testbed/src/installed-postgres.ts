/**
 * Which versions of PostgreSQL this machine has, and where.
 *
 * They are looked for where Debian puts them, or where TESTBED_POSTGRES_BIN says: a path with `{major}` in it, like
 * `worker.postgresBin`, which the product under test is then given too (`partsEnvironment`). A path below which only one
 * version lies makes every test run with that one.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';

/** The versions that the product clones. */
export const POSTGRES_MAJORS: readonly number[] = [15, 16, 17, 18];

const DEBIAN_BIN = '/usr/lib/postgresql/{major}/bin';

/** Null: nobody has said, and Debian's place counts. */
export const configuredPostgresBin = process.env.TESTBED_POSTGRES_BIN || null;

/** Oldest first. */
export function installedMajors(): readonly number[] {
  return POSTGRES_MAJORS.filter((major) => existsSync(join(binOf(major), 'postgres')));
}

/** `bin` of the newest installed PostgreSQL, or of the given major version. */
export function findPostgres(major = installedMajors().at(-1)): string {
  if (major !== undefined && existsSync(join(binOf(major), 'postgres'))) return binOf(major);
  const wanted = major === undefined ? POSTGRES_MAJORS.join(', ') : String(major);
  throw new Error(
    `PostgreSQL ${wanted} is not installed in ${configuredPostgresBin ?? DEBIAN_BIN}`,
  );
}

function binOf(major: number): string {
  return (configuredPostgresBin ?? DEBIAN_BIN).replaceAll('{major}', String(major));
}
