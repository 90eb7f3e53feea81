/**
 * Everything that preflight wants to know from the source by SQL, in one round trip.
 *
 * It changes nothing and raises no error for want of rights: what the user may not see is null or empty, and
 * `rights` says why; `checkSource` turns that into what has to be granted.
 */
import type { Session } from './session.ts';
import { requireSupportedVersion } from './version.ts';

export interface Tablespace {
  readonly oid: string;
  readonly name: string;
  /** As the filesystem has it. Bytes that are not UTF-8 became U+FFFD. */
  readonly location: string;
  /** Null if the user may not know. */
  readonly bytes: number | null;
}

export interface SourceFacts {
  readonly versionNum: number;
  readonly major: number;
  readonly systemIdentifier: string;
  /** The timeline that the source writes, or on a standby that of its last restartpoint. */
  readonly timeline: number;
  /** What the cluster calls its directory below a tablespace's location: `PG_15_202209061` (R1.8). */
  readonly tablespaceDirectoryName: string;
  readonly inRecovery: boolean;
  /** ISO 8601 in UTC with microseconds; changes with every start of the server (R11.4). */
  readonly startedAt: string;
  /** Empty without `rights.monitor`. */
  readonly dataDirectory: string;
  /** 0o700 or 0o750 (R6.11). */
  readonly dataDirectoryMode: number;
  /** Their paths are empty without `rights.monitor`. */
  readonly configFiles: {
    readonly configFile: string;
    readonly hbaFile: string;
    readonly identFile: string;
  };
  readonly port: number;
  readonly walSegmentBytes: number;
  readonly dataChecksums: boolean;
  /** `block_size`. */
  readonly pageBytes: number;
  /** How many pages a file of a relation holds at the most: `segment_size`. */
  readonly segmentPages: number;
  readonly walLevel: string;
  /** On a standby: whether its primary wrote them at the checkpoint of the last restartpoint (R3.8). */
  readonly fullPageWrites: boolean;
  readonly archiveMode: string;
  readonly synchronousStandbyNames: string;
  /** The names of the standbys that commits wait for now, or would wait for next. */
  readonly synchronousStandbys: readonly string[];
  readonly archiver: ArchiverState;
  readonly databases: readonly CollationState[];
  /** Those of the database we are in that something in it uses, besides its own. */
  readonly collations: readonly CollationState[];
  /** What its databases have for LC_COLLATE and LC_CTYPE, each with their names. */
  readonly locales: readonly { readonly locale: string; readonly databases: readonly string[] }[];
  /** Null: no limit. */
  readonly maxSlotWalKeepBytes: number | null;
  /** Null: the version has none, or it is off. */
  readonly idleSlotTimeoutMs: number | null;
  readonly walSendersFree: number;
  readonly slotsFree: number;
  /** `CONNECTION LIMIT` of the user and of the database that we are in; null: none holds. */
  readonly connectionLimits: {
    readonly role: ConnectionLimit | null;
    readonly database: ConnectionLimit | null;
  };
  readonly tablespaces: readonly Tablespace[];
  /** What lies in PGDATA itself: the tablespaces pg_default and pg_global. Null if the user may not know. */
  readonly databaseBytes: number | null;
  /** As `pg_settings` has them, in its units: those of R9.1, and the others that were read. */
  readonly settings: Readonly<Record<string, string>>;
  /** What no file tells: settings of its command line, as containers and Patroni have them. With their units. */
  readonly commandLineSettings: Readonly<Record<string, string>>;
  readonly database: string;
  readonly user: string;
  readonly rights: SourceRights;
}

interface ConnectionLimit {
  readonly limit: number;
  /** Below 0 where it was lowered meanwhile. */
  readonly free: number;
}

interface ArchiverState {
  /** The last attempt has failed. */
  readonly failing: boolean;
  readonly wal: string;
  readonly failedAt: string;
}

/** The order of text that a database or a collation was made with, and what the source's libraries give now (R9.1). */
export interface CollationState {
  readonly name: string;
  /** `c`: the C library, `i`: ICU, `b`: PostgreSQL itself. */
  readonly provider: string;
  /** Null where there is no version, such as in the locale C. */
  readonly recorded: string | null;
  readonly actual: string | null;
}

/** What R3.10 asks for, as the user has it in this database. */
export interface SourceRights {
  readonly replication: boolean;
  readonly backupStart: boolean;
  readonly backupStop: boolean;
  readonly monitor: boolean;
}

/** A standby must have at least as much of each as its primary, else it stops in recovery (R9.1). */
export const STANDBY_MINIMUM_SETTINGS = [
  'max_connections',
  'max_worker_processes',
  'max_wal_senders',
  'max_prepared_transactions',
  'max_locks_per_transaction',
] as const;

const SETTINGS_READ = [
  ...STANDBY_MINIMUM_SETTINGS,
  'archive_mode',
  'block_size',
  'config_file',
  'data_checksums',
  'data_directory',
  'data_directory_mode',
  'dynamic_library_path',
  'external_pid_file',
  'hba_file',
  'huge_pages',
  'ident_file',
  'idle_replication_slot_timeout',
  'io_method',
  'lc_messages',
  'lc_monetary',
  'lc_numeric',
  'lc_time',
  'listen_addresses',
  'local_preload_libraries',
  'log_directory',
  'max_replication_slots',
  'max_slot_wal_keep_size',
  'max_wal_size',
  'port',
  'segment_size',
  'session_preload_libraries',
  'shared_memory_size_in_huge_pages',
  'shared_preload_libraries',
  'ssl',
  'ssl_ca_file',
  'ssl_cert_file',
  'ssl_crl_dir',
  'ssl_crl_file',
  'ssl_key_file',
  'synchronous_standby_names',
  'unix_socket_directories',
  'wal_keep_size',
  'wal_level',
  'wal_segment_size',
];

/**
 * The timeline comes from the name of the file that is written: that of the last checkpoint is still the old one for a
 * while after a promotion.
 */
const READ_FACTS = `
  WITH may AS MATERIALIZED (
    SELECT rolsuper OR rolreplication AS replication,
           has_function_privilege('pg_backup_start(text,boolean)', 'EXECUTE') AS "backupStart",
           has_function_privilege('pg_backup_stop(boolean)', 'EXECUTE') AS "backupStop",
           pg_has_role('pg_read_all_settings', 'USAGE')
             AND pg_has_role('pg_read_all_stats', 'USAGE') AS monitor
      FROM pg_roles WHERE rolname = current_user
  )
  SELECT control.system_identifier::text AS "systemIdentifier",
         control.catalog_version_no AS "catalogVersion",
         CASE WHEN pg_is_in_recovery() THEN checkpoint.timeline_id
              ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END AS "timeline",
         pg_is_in_recovery() AS "inRecovery",
         CASE WHEN pg_is_in_recovery() THEN checkpoint.full_page_writes
              ELSE current_setting('full_page_writes')::boolean END AS "fullPageWrites",
         to_char(pg_postmaster_start_time() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS "startedAt",
         (SELECT count(*)::int FROM pg_stat_replication) AS "walSenders",
         (SELECT coalesce(json_agg(DISTINCT application_name), '[]')
            FROM pg_stat_replication WHERE sync_state <> 'async') AS "synchronousStandbys",
         (SELECT json_build_object(
                   'failing', coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false),
                   'wal', coalesce(last_failed_wal, ''), 'failedAt', coalesce(last_failed_time::text, ''))
            FROM pg_stat_archiver) AS "archiver",
         (SELECT json_agg(json_build_object(
                   'name', datname, 'provider', datlocprovider, 'recorded', datcollversion,
                   'actual', pg_database_collation_actual_version(oid)) ORDER BY datname)
            FROM pg_database WHERE datallowconn AND datconnlimit <> -2) AS "databases",
         (SELECT json_agg(used)
            FROM (SELECT locale, json_agg(DISTINCT datname::text) AS databases
                    FROM pg_database, unnest(ARRAY[datcollate, datctype]) AS locale
                   WHERE datallowconn AND datconnlimit <> -2
                   GROUP BY locale ORDER BY locale) AS used) AS "locales",
         (SELECT coalesce(json_agg(json_build_object(
                   'name', oid::regcollation::text, 'provider', collprovider, 'recorded', collversion,
                   'actual', pg_collation_actual_version(oid)) ORDER BY oid), '[]')
            FROM pg_collation
           WHERE collversion IS NOT NULL
             AND EXISTS (SELECT FROM pg_depend
                          WHERE refclassid = 'pg_collation'::regclass AND refobjid = pg_collation.oid)) AS "collations",
         (SELECT count(*)::int FROM pg_replication_slots) AS "slots",
         (SELECT json_build_object(
                   'role', CASE WHEN rolconnlimit >= 0 AND NOT rolsuper THEN json_build_object(
                     'limit', rolconnlimit, 'free', rolconnlimit - (
                       SELECT count(*) FROM pg_stat_activity WHERE usesysid = pg_roles.oid)) END,
                   'database', CASE WHEN datconnlimit >= 0 AND NOT rolsuper THEN json_build_object(
                     'limit', datconnlimit, 'free', datconnlimit - (
                       SELECT count(*) FROM pg_stat_activity
                        WHERE datid = pg_database.oid AND usesysid IS NOT NULL)) END)
            FROM pg_roles, pg_database
           WHERE rolname = current_user AND datname = current_database()) AS "connectionLimits",
         (SELECT json_object_agg(name, json_build_object('value', setting, 'unit', unit))
            FROM pg_settings WHERE name = ANY ($1)) AS "settings",
         (SELECT coalesce(json_object_agg(name, current_setting(name)), '{}')
            FROM pg_settings
           WHERE source = 'command line' AND NOT name = ANY ($2)) AS "commandLineSettings",
         (SELECT coalesce(json_agg(json_build_object(
                   'oid', oid::text, 'name', spcname, 'location', pg_tablespace_location(oid),
                   'bytes', CASE WHEN may.monitor THEN pg_tablespace_size(oid) END) ORDER BY oid), '[]')
            FROM pg_tablespace) AS "tablespaces",
         current_database() AS "database",
         current_user::text AS "user",
         to_json(may) AS "rights"
    FROM may, pg_control_system() AS control, pg_control_checkpoint() AS checkpoint`;

interface FactsRow
  extends Pick<
    SourceFacts,
    | 'systemIdentifier'
    | 'timeline'
    | 'inRecovery'
    | 'fullPageWrites'
    | 'startedAt'
    | 'database'
    | 'user'
    | 'rights'
    | 'tablespaces'
    | 'synchronousStandbys'
    | 'archiver'
    | 'databases'
    | 'collations'
    | 'connectionLimits'
    | 'locales'
    | 'commandLineSettings'
  > {
  readonly catalogVersion: number;
  readonly walSenders: number;
  readonly slots: number;
  readonly settings: Readonly<
    Record<string, { readonly value: string | null; readonly unit: string | null }>
  >;
}

/** In which PGDATA lie what everybody calls its own contents. */
const TABLESPACES_IN_PGDATA = ['pg_default', 'pg_global'];

/** No other cluster has them. */
const ITS_OWN_PATHS = [
  'config_file',
  'data_directory',
  'external_pid_file',
  'hba_file',
  'ident_file',
];

const UNIT_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, min: 60_000 };

export async function readSourceFacts(session: Session, signal: AbortSignal): Promise<SourceFacts> {
  const [row] = await session.query<FactsRow>(READ_FACTS, [SETTINGS_READ, ITS_OWN_PATHS], signal);
  if (row === undefined) throw new Error('the server answered nothing');
  const { settings, walSenders, slots, tablespaces, catalogVersion, ...asTheyAre } = row;
  const value = (name: string): string => settings[name]?.value ?? '';
  const major = requireSupportedVersion(session.versionNum);

  const keepMegabytes = Number(value('max_slot_wal_keep_size'));
  const idleTimeout = settings.idle_replication_slot_timeout;
  const idleSlotTimeoutMs =
    Number(idleTimeout?.value ?? 0) * (UNIT_MS[idleTimeout?.unit ?? ''] ?? 0);
  const own = tablespaces.filter(({ name }) => TABLESPACES_IN_PGDATA.includes(name));
  return {
    ...asTheyAre,
    versionNum: session.versionNum,
    major,
    tablespaceDirectoryName: `PG_${String(major)}_${String(catalogVersion)}`,
    dataDirectory: value('data_directory'),
    // It prints in octal, as chmod takes it.
    dataDirectoryMode: Number.parseInt(value('data_directory_mode'), 8),
    configFiles: {
      configFile: value('config_file'),
      hbaFile: value('hba_file'),
      identFile: value('ident_file'),
    },
    port: Number(value('port')),
    walSegmentBytes: Number(value('wal_segment_size')),
    dataChecksums: value('data_checksums') === 'on',
    pageBytes: Number(value('block_size')),
    segmentPages: Number(value('segment_size')),
    walLevel: value('wal_level'),
    archiveMode: value('archive_mode'),
    synchronousStandbyNames: value('synchronous_standby_names'),
    maxSlotWalKeepBytes: keepMegabytes < 0 ? null : keepMegabytes * 1024 * 1024,
    idleSlotTimeoutMs: idleSlotTimeoutMs === 0 ? null : idleSlotTimeoutMs,
    walSendersFree: Number(value('max_wal_senders')) - walSenders,
    slotsFree: Number(value('max_replication_slots')) - slots,
    tablespaces: tablespaces.filter((tablespace) => !own.includes(tablespace)),
    databaseBytes: own.some(({ bytes }) => bytes === null)
      ? null
      : own.reduce((sum, { bytes }) => sum + (bytes ?? 0), 0),
    settings: Object.fromEntries(Object.keys(settings).map((name) => [name, value(name)])),
  };
}

/** Tablespaces with a location of their own, to be compared with those of an earlier time (R1.9, R1.11). */
export async function readTablespaces(
  session: Session,
  signal: AbortSignal,
): Promise<readonly Omit<Tablespace, 'bytes'>[]> {
  return await session.query<Omit<Tablespace, 'bytes'>>(
    `SELECT oid::text AS "oid", spcname::text AS "name", pg_tablespace_location(oid) AS "location"
       FROM pg_tablespace WHERE NOT spcname = ANY ($1) ORDER BY pg_tablespace.oid`,
    [TABLESPACES_IN_PGDATA],
    signal,
  );
}
