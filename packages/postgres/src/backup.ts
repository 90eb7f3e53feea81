/**
 * Begins and ends the backup on the source.
 *
 * Both calls belong to one session: if it ends in between, so does the backup, and nothing that was copied is worth
 * anything (R3.1). Ending the session is therefore also how a backup is called off.
 */
import type { Session } from './session.ts';

export interface BackupStart {
  /** Recovery of the copy begins here. */
  readonly startLsn: string;
  readonly timeline: number;
}

export interface BackupStop {
  /** The copy is consistent once WAL has been replayed up to here. */
  readonly stopLsn: string;
  /** The content of `backup_label`, byte for byte (R2.7). */
  readonly label: Buffer;
  /** The content of `tablespace_map`, byte for byte; empty where there are no tablespaces. */
  readonly tablespaceMap: Buffer;
}

/** The server reads the label back with a limit of 1023 bytes and stops at a line feed. */
const LABEL = /^[\x20-\x7e]{1,1000}$/;

/** `pg_walfile_name` knows the timeline that is written now; of its file name nothing else is believed (R3.6). */
const START = `
  SELECT start_lsn::text AS "startLsn",
         CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
              ELSE ('x' || left(pg_walfile_name(start_lsn), 8))::bit(32)::int END AS "timeline"
    FROM pg_backup_start($1, $2) AS start_lsn`;

/**
 * `textsend` gives the bytes as they are, where a cast to bytea would read backslashes as escapes. The session's client
 * encoding is SQL_ASCII, so nothing is converted either.
 *
 * Not waiting for the archive (R3.3): the needed WAL is ours already, and an archiver that fails would block for ever.
 */
const STOP = `
  SELECT lsn::text AS "stopLsn", textsend(labelfile) AS "label", textsend(spcmapfile) AS "tablespaceMap"
    FROM pg_backup_stop(false)`;

/**
 * Waits for a checkpoint: an immediate one if `fast`, else one that is spread over up to `checkpoint_timeout`.
 *
 * @param label One line of ASCII for the backup_label, at most 1000 characters.
 * @throws {CloneError} `SOURCE_RIGHTS_MISSING`, `SOURCE_SETTINGS_UNSUITABLE` (wal_level, full_page_writes), `SOURCE_LOST`.
 */
export async function startBackup(
  session: Session,
  {
    label,
    fast,
    signal,
  }: { readonly label: string; readonly fast: boolean; readonly signal: AbortSignal },
): Promise<BackupStart> {
  if (!LABEL.test(label)) throw new RangeError(`not a label for a backup: ${label}`);
  const [start] = await session.query<{ startLsn: string; timeline: number }>(
    START,
    [label, fast],
    signal,
  );
  if (start === undefined) throw new Error('pg_backup_start answered nothing');
  return start;
}

/**
 * On a primary the last segment that is needed is complete when this returns (R3.5).
 *
 * @throws {CloneError} `SOURCE_SETTINGS_UNSUITABLE` if a standby was promoted meanwhile, `SOURCE_LOST`.
 */
export async function stopBackup(session: Session, signal: AbortSignal): Promise<BackupStop> {
  const [stop] = await session.query<{
    stopLsn: string;
    label: Buffer;
    tablespaceMap: Buffer | null;
  }>(STOP, [], signal);
  if (stop === undefined) throw new Error('pg_backup_stop answered nothing');
  return { ...stop, tablespaceMap: stop.tablespaceMap ?? Buffer.alloc(0) };
}
