/**
 * Whether a server that has not answered yet still works on it.
 *
 * A query may take as long as it likes: the checkpoint of a busy primary takes minutes, and nobody sees how far it is. But
 * over a link that swallows packets our kernel would go on sending the question for a quarter of an hour. So the server
 * is asked over a connection of its own whether the backend is there and busy.
 */
import { connectClient, destroyClient, SEARCH_NOTHING_ELSE, sqlState } from './connect.ts';
import type { ConnectionSettings } from './connection-settings.ts';

const TICK_MS = 5_000;
const TICKS_PER_LOOK = 2;
/** The same patience as that of the server towards us, by `tcp_user_timeout`: 25 s. */
const SILENT_TICKS_MAX = 5;

export interface AnswerWatch {
  /** Settles once nothing is asked any more. */
  readonly stop: () => Promise<void>;
}

/** @param o.fail Called once, when the server ended the session or gives no sign of life. */
export function watchForAnswer(
  settings: ConnectionSettings,
  o: {
    readonly applicationName: string;
    readonly backendPid: number;
    readonly fail: (cause: Error) => void;
  },
): AnswerWatch {
  const stopping = new AbortController();
  let looking: Promise<void> = Promise.resolve();
  let isLooking = false;
  // Ticks count, and not time: a process that was frozen for minutes has heard of nothing meanwhile.
  let ticks = 0;
  let silentTicks = 0;
  const look = async () => {
    const seen = await lookAt(settings, { ...o, signal: stopping.signal });
    if (stopping.signal.aborted) return;
    if (seen === 'gone') o.fail(new Error('the server has ended the session'));
    if (seen === 'working') silentTicks = 0;
  };
  const timer = setInterval(() => {
    ticks += 1;
    silentTicks += 1;
    if (silentTicks === SILENT_TICKS_MAX) o.fail(new Error('the server did not answer'));
    if (isLooking || ticks % TICKS_PER_LOOK !== 0) return;
    isLooking = true;
    looking = look().finally(() => {
      isLooking = false;
    });
  }, TICK_MS);
  return {
    stop: async () => {
      clearInterval(timer);
      stopping.abort();
      await looking;
    },
  };
}

/** @returns `silent` also where a backend has not begun with the question: it did not get it, or was stopped. */
async function lookAt(
  settings: ConnectionSettings,
  {
    applicationName,
    backendPid,
    signal,
  }: {
    readonly applicationName: string;
    readonly backendPid: number;
    readonly signal: AbortSignal;
  },
): Promise<'working' | 'silent' | 'gone'> {
  try {
    const client = await connectClient(settings, { applicationName, replication: false, signal });
    const leave = () => void destroyClient(client);
    signal.addEventListener('abort', leave, { once: true });
    try {
      await client.query(SEARCH_NOTHING_ELSE);
      const { rows } = await client.query<{ isWorking: boolean }>(
        `SELECT state IS DISTINCT FROM 'idle' AS "isWorking"
           FROM pg_stat_activity WHERE pid = $1 AND application_name = $2`,
        [backendPid, applicationName],
      );
      if (rows[0] === undefined) return 'gone';
      return rows[0].isWorking ? 'working' : 'silent';
    } finally {
      signal.removeEventListener('abort', leave);
      // Without a good-bye that somebody would have to wait for.
      await destroyClient(client);
    }
  } catch (error) {
    // A server that lets nobody in any more, for want of room or of a valid password, is well enough to say so.
    return sqlState((error as Error).cause) === null ? 'silent' : 'working';
  }
}
