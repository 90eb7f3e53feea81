/**
 * Everything that differs between the versions of PostgreSQL, in one place.
 *
 * Settings that only some versions have are not listed: they are looked up in `pg_settings` by name, so that a version
 * which gains one needs no change here.
 */
import { CloneError } from '@pgcloned/contract';

/** The versions that are cloned, oldest first. */
export const SUPPORTED_MAJORS: readonly number[] = [15, 16, 17, 18];

const MAJOR_MIN = Math.min(...SUPPORTED_MAJORS);
const MAJOR_MAX = Math.max(...SUPPORTED_MAJORS);

/** For messages: `15 to 18`. */
export const SUPPORTED_RANGE = `${String(MAJOR_MIN)} to ${String(MAJOR_MAX)}`;

/** `pg_control_version` of 15 and 16, of 17, and of 18. */
export const CONTROL_FILE_VERSIONS: readonly number[] = [1300, 1700, 1800];

/** Directories of pg_wal that a base backup has too (R1.4); the summaries serve incremental backups. */
export function walSubdirectories(major: number): readonly string[] {
  return major >= 17 ? ['archive_status', 'summaries'] : ['archive_status'];
}

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
          ? `This release clones PostgreSQL ${SUPPORTED_RANGE}: upgrade the source, since backups of older versions work differently.`
          : `This release clones PostgreSQL ${SUPPORTED_RANGE}: use one that knows PostgreSQL ${String(major)}.`,
    },
  );
}

/** `14.23`; before 10 a version had three parts: `9.6.24`. */
export function versionName(versionNum: number): string {
  const major = Math.floor(versionNum / 10_000);
  const minor = versionNum % 10_000;
  return major >= 10
    ? `${String(major)}.${String(minor)}`
    : `${String(major)}.${String(Math.floor(minor / 100))}.${String(minor % 100)}`;
}
