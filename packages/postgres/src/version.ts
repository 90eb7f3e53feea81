/**
 * Everything that differs between the versions of PostgreSQL, in one place.
 *
 * Settings that only some versions have are not listed: they are looked up in `pg_settings` by name, so that a version
 * which gains one needs no change here.
 */
import { CloneError } from '@pgcloned/contract';

const MAJOR_MIN = 15;
const MAJOR_MAX = 18;

/** `pg_control_version` of 15 to 17, and of 18. */
export const CONTROL_FILE_VERSIONS: readonly number[] = [1300, 1800];

/**
 * The major version of a `server_version_num` such as 150018.
 *
 * @throws {CloneError} `SOURCE_VERSION_UNSUPPORTED`, naming the version and what would do.
 */
export function requireSupportedVersion(versionNum: number): number {
  const major = Math.floor(versionNum / 10_000);
  if (major >= MAJOR_MIN && major <= MAJOR_MAX) return major;
  throw new CloneError(
    'SOURCE_VERSION_UNSUPPORTED',
    `PostgreSQL ${versionName(versionNum)} is not supported`,
    {
      facts: { versionNum, majorMin: MAJOR_MIN, majorMax: MAJOR_MAX },
      hint:
        major < MAJOR_MIN
          ? `Upgrade the source to PostgreSQL ${String(MAJOR_MIN)} or later; backups of older versions work differently.`
          : `Use a release of pgcloned that knows PostgreSQL ${String(major)}.`,
    },
  );
}

/** `14.23`; before 10 a version had three parts: `9.6.24`. */
function versionName(versionNum: number): string {
  const major = Math.floor(versionNum / 10_000);
  const minor = versionNum % 10_000;
  return major >= 10
    ? `${String(major)}.${String(minor)}`
    : `${String(major)}.${String(Math.floor(minor / 100))}.${String(minor % 100)}`;
}
