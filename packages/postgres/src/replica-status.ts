/** How far a started replica is, asked from itself and from its primary. */
import type { Session } from './session.ts';

export interface ReplicaStatus {
  readonly inRecovery: boolean;
  /** Null before the first record was replayed. */
  readonly replayLsn: string | null;
  readonly receiveLsn: string | null;
  readonly systemIdentifier: string;
  /** `streaming` while its WAL receiver is connected; null if it has none. */
  readonly walReceiver: string | null;
}

export interface StandbyStatus {
  /** `startup`, `catchup` or `streaming`. */
  readonly state: string;
  readonly sentLsn: string | null;
  readonly replayLsn: string | null;
}

/**
 * What the replica says. That it takes a session at all proves that it has become consistent: a server in recovery admits
 * nobody before.
 */
export async function replicaStatus(session: Session, signal: AbortSignal): Promise<ReplicaStatus> {
  const [status] = await session.query<ReplicaStatus>(
    `SELECT pg_is_in_recovery() AS "inRecovery",
            pg_last_wal_replay_lsn()::text AS "replayLsn",
            pg_last_wal_receive_lsn()::text AS "receiveLsn",
            (SELECT system_identifier::text FROM pg_control_system()) AS "systemIdentifier",
            (SELECT status FROM pg_stat_wal_receiver) AS "walReceiver"`,
    [],
    signal,
  );
  if (status === undefined) throw new Error('the server answered nothing');
  return status;
}

/**
 * What the primary says about a standby.
 *
 * @returns Null while no WAL sender serves that name, or the user may not see its state (R3.10).
 */
export async function standbyStatus(
  primary: Session,
  applicationName: string,
  signal: AbortSignal,
): Promise<StandbyStatus | null> {
  const [status] = await primary.query<StandbyStatus>(
    `SELECT state, sent_lsn::text AS "sentLsn", replay_lsn::text AS "replayLsn"
       FROM pg_stat_replication
      WHERE application_name = $1 AND state IS NOT NULL
      ORDER BY backend_start DESC LIMIT 1`,
    [applicationName],
    signal,
  );
  return status ?? null;
}
