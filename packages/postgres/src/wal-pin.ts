/**
 * Keeps WAL on the source for as long as a clone needs it, and leaves nothing behind.
 *
 * The pin is a temporary replication slot that reserves WAL although nobody streams from it (R5.1). It dies with its
 * session, and so do we want it: a crash on either side never fills the disk of the source. Two facts rule this module.
 * *Any* error in the session drops the slot without a word, so only statements that cannot fail run in it, and each looks
 * whether the slot is still ours (R5.2). And the server ends the session whose slot keeps too much WAL, so the session
 * holds nothing else: losing the pin need not end the clone (R5.3).
 */
import { CloneError } from '@pgcloned/contract';
import type { ConnectionSettings } from './connection-settings.ts';
import { parseLsn } from './lsn.ts';
import { openSession } from './session.ts';

export interface WalPin extends AsyncDisposable {
  readonly slotName: string;
  /** WAL from here on is kept: where the receiver is to begin. */
  readonly restartLsn: string;
  /** The timeline of the WAL at `restartLsn`. */
  readonly restartTimeline: number;
  /**
   * Lets go of the WAL before `lsn`, which must be safe here already; an earlier `lsn` than before changes nothing (R5.4).
   * It is also the check that the pin still holds.
   *
   * @throws {CloneError} What `lost` settles with, once the pin is lost.
   */
  advance(lsn: string): Promise<void>;
  /** Settles with the reason when the pin is lost: at once with its session, else within one heartbeat. */
  readonly lost: Promise<CloneError>;
  /** Drops the slot and ends the session. Never throws; does nothing when repeated. */
  release(): Promise<void>;
}

const HEARTBEAT_MS = 10_000;

const CREATE = `
  SELECT lsn::text AS "restartLsn",
         (SELECT timeline_id FROM pg_control_checkpoint()) AS "restartTimeline",
         (SELECT setting::int * CASE unit WHEN 'ms' THEN 1 WHEN 's' THEN 1000 WHEN 'min' THEN 60000 END
            FROM pg_settings WHERE name = 'idle_replication_slot_timeout') AS "idleTimeoutMs"
    FROM pg_create_physical_replication_slot($1, true, true)`;

/** A slot that is gone, invalid or another session's gives no row; a target that lies behind is replaced: neither fails. */
const ADVANCE = `
  SELECT (pg_replication_slot_advance(slot_name, greatest($2::pg_lsn, restart_lsn))).end_lsn::text AS "restartLsn"
    FROM pg_replication_slots
   WHERE slot_name = $1 AND active_pid = pg_backend_pid()
     AND restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost'`;

const DROP = `
  SELECT pg_drop_replication_slot(slot_name)
    FROM pg_replication_slots WHERE slot_name = $1 AND active_pid = pg_backend_pid()`;

/**
 * @throws {CloneError} `SOURCE_SETTINGS_UNSUITABLE` if there is no free slot or wal_level is too low,
 *   `SOURCE_RIGHTS_MISSING`, and whatever `openSession` throws.
 */
export async function pinWal(
  settings: ConnectionSettings,
  {
    slotName,
    applicationName,
    signal,
  }: { readonly slotName: string; readonly applicationName: string; readonly signal: AbortSignal },
): Promise<WalPin> {
  const session = await openSession(settings, { applicationName, signal });
  try {
    const [created] = await session.query<{
      restartLsn: string;
      restartTimeline: number;
      idleTimeoutMs: number | null;
    }>(CREATE, [slotName], signal);
    if (created === undefined) throw new Error('the server answered nothing');
    const { restartLsn, restartTimeline, idleTimeoutMs } = created;

    const { promise: lost, resolve: resolveLost } = Promise.withResolvers<CloneError>();
    void session.lost.then((reason) => {
      resolveLost(lostPin(slotName, reason));
    });
    // It outlives the signal of its creation, and is ended by `release` alone.
    const unaborted = new AbortController().signal;
    let target = restartLsn;
    let lostBecause: CloneError | null = null;

    const keep = async (): Promise<void> => {
      if (lostBecause !== null) throw lostBecause;
      try {
        const [slot] = await session.query(ADVANCE, [slotName, target], unaborted);
        if (slot !== undefined) return;
        lostBecause = lostPin(slotName, new Error('the slot is gone'));
      } catch (error) {
        // Also the error of the statement itself has cost us the slot by now.
        lostBecause = lostPin(slotName, error);
      }
      resolveLost(lostBecause);
      throw lostBecause;
    };
    const heartbeat = setInterval(() => {
      // The loss is told by `lost`.
      keep().catch(() => {});
    }, heartbeatMs(idleTimeoutMs));
    void lost.then(() => {
      clearInterval(heartbeat);
    });
    const release = async (): Promise<void> => {
      clearInterval(heartbeat);
      // Ending the session drops the slot in any case; this only makes it gone before the session is.
      await session.query(DROP, [slotName], AbortSignal.timeout(5_000)).catch(() => {});
      await session[Symbol.asyncDispose]();
    };
    let releasing: Promise<void> | null = null;
    const releaseOnce = () => (releasing ??= release());

    return {
      slotName,
      restartLsn,
      restartTimeline,
      advance: async (lsn) => {
        if (parseLsn(lsn) > parseLsn(target)) target = lsn;
        await keep();
      },
      lost,
      release: releaseOnce,
      [Symbol.asyncDispose]: releaseOnce,
    };
  } catch (error) {
    await session[Symbol.asyncDispose]();
    throw explainNoSlot(error, slotName);
  }
}

/** From 18 on an idle slot can cost its session the life, and each heartbeat ends its idleness (R5.5). */
function heartbeatMs(idleTimeoutMs: number | null): number {
  if (idleTimeoutMs === null || idleTimeoutMs === 0) return HEARTBEAT_MS;
  return Math.min(HEARTBEAT_MS, Math.floor(idleTimeoutMs / 3));
}

function lostPin(slotName: string, cause: unknown): CloneError {
  return new CloneError(
    'SOURCE_LOST',
    'the replication slot that keeps WAL for the clone is gone',
    {
      facts: { slotName, reason: reasonOf(cause) },
      hint: 'Raise max_slot_wal_keep_size on the source, or give the clone a faster way to it.',
      cause,
    },
  );
}

function reasonOf(cause: unknown): string {
  if (cause instanceof CloneError && typeof cause.facts.reason === 'string')
    return cause.facts.reason;
  return cause instanceof Error ? cause.message : String(cause);
}

function explainNoSlot(error: unknown, slotName: string): unknown {
  if (!(error instanceof CloneError) || error.code !== 'SOURCE_SETTINGS_UNSUITABLE') return error;
  return new CloneError('SOURCE_SETTINGS_UNSUITABLE', 'the source gives no replication slot', {
    facts: { slotName, ...error.facts },
    hint: 'Raise max_replication_slots on the source, which takes a restart, or clone with wal.retention none.',
    cause: error,
  });
}
