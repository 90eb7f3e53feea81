/**
 * Begins and ends the backup on the source.
 *
 * Both calls belong to one session: if it ends in between, so does the backup, and nothing that was copied is worth
 * anything (R3.1). Ending the session is therefore also how a backup is called off.
 *
 * A standby writes no WAL of its own: its backup begins at its last restartpoint, which may lie far back (R3.4), and ends
 * where it may have written its files up to, in the middle of a segment (R3.5).
 */
import { CloneError } from '@pgcloned/contract';
import { isInRecovery, promoted } from './promotion.ts';
import type { Session } from './session.ts';

export interface BackupStart {
  /** Recovery of the copy begins here. */
  readonly startLsn: string;
  /** The timeline of the WAL at `startLsn`. */
  readonly timeline: number;
  /** Of a standby: the timeline of the WAL that it has replayed last into its files. Null: it is a primary. */
  readonly replayedTimeline: number | null;
}

export interface BackupStop {
  /** The copy is consistent once WAL has been replayed up to here; on a standby also up to what pg_control says (R2.2). */
  readonly stopLsn: string;
  /** The timeline of the start, as the label has it. */
  readonly timeline: number;
  /** As in `BackupStart`, at the end. */
  readonly replayedTimeline: number | null;
  /** The content of `backup_label`, byte for byte (R2.7). */
  readonly label: Buffer;
  /** The content of `tablespace_map`, byte for byte; empty where there are no tablespaces. */
  readonly tablespaceMap: Buffer;
}

/** The server reads the label back with a limit of 1023 bytes and stops at a line feed. */
const LABEL = /^[\x20-\x7e]{1,1000}$/;

const REPLAYED_TIMELINE = `
         CASE WHEN pg_is_in_recovery()
              THEN (SELECT min_recovery_end_timeline FROM pg_control_recovery()) END AS "replayedTimeline"`;

const START_TIMELINE = /^START TIMELINE: (\d+)$/m;

/** `pg_walfile_name` knows the timeline that is written now; of its file name nothing else is believed (R3.6). */
const START = `
  SELECT start_lsn::text AS "startLsn",
         CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
              ELSE ('x' || left(pg_walfile_name(start_lsn), 8))::bit(32)::int END AS "timeline",
         ${REPLAYED_TIMELINE}
    FROM pg_backup_start($1, $2) AS start_lsn`;

/**
 * `textsend` gives the bytes as they are, where a cast to bytea would read backslashes as escapes. The session's client
 * encoding is SQL_ASCII, so nothing is converted either.
 *
 * Not waiting for the archive (R3.3): the needed WAL is ours already, and an archiver that fails would block for ever.
 */
const STOP = `
  SELECT lsn::text AS "stopLsn", textsend(labelfile) AS "label", textsend(spcmapfile) AS "tablespaceMap",
         ${REPLAYED_TIMELINE}
    FROM pg_backup_stop(false)`;

/**
 * Waits for a checkpoint: an immediate one if `fast`, else one that is spread over up to `checkpoint_timeout`. On a standby
 * it is a restartpoint, where there is a new checkpoint to make one of.
 *
 * @param label One line of ASCII for the backup_label, at most 1000 characters.
 *
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
  const [start] = await session
    .query<BackupStart>(START, [label, fast], signal, { isRepeatable: false })
    .catch(async (error: unknown) => {
      throw isRuledOut(error) && (await isInRecovery(session, signal))
        ? fullPageWritesOff(error)
        : error;
    });
  if (start === undefined) throw new Error('pg_backup_start answered nothing');
  return start;
}

/**
 * On a primary the last segment that is needed is complete when this returns (R3.5).
 *
 * @param start The backup that ends.
 * @throws {CloneError} `SOURCE_PROMOTED` if a standby was promoted meanwhile, `SOURCE_SETTINGS_UNSUITABLE` if it has
 *   replayed WAL without full page images, `SOURCE_LOST`.
 */
export async function stopBackup(
  session: Session,
  start: BackupStart,
  signal: AbortSignal,
): Promise<BackupStop> {
  const [stop] = await session
    .query<{
      stopLsn: string;
      label: Buffer;
      tablespaceMap: Buffer | null;
      replayedTimeline: number | null;
    }>(STOP, [], signal, { isRepeatable: false })
    .catch(async (error: unknown) => {
      if (start.replayedTimeline === null || !isRuledOut(error)) throw error;
      throw (await isInRecovery(session, signal)) ? fullPageWritesOff(error) : promoted(session);
    });
  if (stop === undefined) throw new Error('pg_backup_stop answered nothing');
  const timeline = Number(START_TIMELINE.exec(stop.label.toString('latin1'))?.[1]);
  return { ...stop, timeline, tablespaceMap: stop.tablespaceMap ?? Buffer.alloc(0) };
}

/** A call that the state of the server rules out leaves the session alive, and can be asked why. */
function isRuledOut(error: unknown): boolean {
  return error instanceof CloneError && error.code === 'SOURCE_SETTINGS_UNSUITABLE';
}

/** R3.8: a primary writes full page images while a backup of it runs, but knows nothing of those of its standbys. */
export function fullPageWritesOff(cause?: unknown): CloneError {
  return new CloneError(
    'SOURCE_SETTINGS_UNSUITABLE',
    'the primary of the source writes WAL without full page images',
    {
      facts: { setting: 'full_page_writes', value: 'off' },
      hint: 'Run on the primary: ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf(); CHECKPOINT; and clone once the source has replayed that checkpoint.',
      remedies: [
        ...[
          'ALTER SYSTEM SET full_page_writes = on;',
          'SELECT pg_reload_conf();',
          'CHECKPOINT;',
        ].map((text) => ({ kind: 'sql', on: 'primary', where: null, text }) as const),
        // Or it goes on from where the old checkpoint was replayed.
        { kind: 'sql', on: 'source', where: null, text: 'CHECKPOINT;' },
      ],
      cause,
    },
  );
}

/** Up to where there may be WAL by now: on a standby what it has received or replayed. */
export async function readWalEnd(session: Session, signal: AbortSignal): Promise<string> {
  const [row] = await session.query<{ end: string }>(
    `SELECT (CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                  ELSE pg_current_wal_insert_lsn() END)::text AS "end"`,
    [],
    signal,
  );
  if (row === undefined) throw new Error('the server answered nothing');
  return row.end;
}
