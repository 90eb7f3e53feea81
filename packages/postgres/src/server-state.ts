/** What has to be known of several servers of one cluster to choose one of them. */
import type { ConnectionSettings } from './connection-settings.ts';
import { openSession } from './session.ts';

export interface ServerState {
  readonly systemIdentifier: string;
  readonly inRecovery: boolean;
  /** The timeline that is written, or on a standby the newest that it has reached. */
  readonly timeline: number;
  /** What a primary has written, or a standby replayed; null: nothing yet since its start. */
  readonly lsn: string | null;
  /** How far its upstream is, by its own words, as long as a standby streams; null: it does not, or the user may not know. */
  readonly upstreamLsn: string | null;
}

const READ_STATE = `
  SELECT control.system_identifier::text AS "systemIdentifier",
         pg_is_in_recovery() AS "inRecovery",
         CASE WHEN pg_is_in_recovery()
              THEN greatest(checkpoint.timeline_id, recovery.min_recovery_end_timeline, receiver.received_tli)
              ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END AS "timeline",
         CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
              ELSE pg_current_wal_lsn() END::text AS "lsn",
         receiver.latest_end_lsn::text AS "upstreamLsn"
    FROM pg_control_system() AS control, pg_control_checkpoint() AS checkpoint,
         pg_control_recovery() AS recovery
         LEFT JOIN pg_stat_wal_receiver AS receiver ON receiver.status = 'streaming'`;

/** @throws What `openSession` throws. */
export async function readServerState(
  settings: ConnectionSettings,
  options: { readonly applicationName: string; readonly signal: AbortSignal },
): Promise<ServerState> {
  await using session = await openSession(settings, options);
  const [state] = await session.query<ServerState>(READ_STATE, [], options.signal);
  if (state === undefined) throw new Error('the server answered nothing');
  return state;
}
