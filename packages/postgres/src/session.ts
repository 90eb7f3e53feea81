/**
 * SQL sessions that must live for as long as a clone, and whose death must be noticed.
 *
 * No timeout of the role or the server ends one, and when this host or the link dies the *server* ends it within seconds
 * (R3.2), and with it the backup or the pin that it holds. A session that ends unasked says so at once through `lost`; a
 * silent loss is found by a query that gets no answer (`answer-watch.ts`), if need be a `SELECT 1`. Queries run one after
 * the other, in the order of the calls.
 *
 * Client encoding is SQL_ASCII: the server then sends bytes as they are, so that paths arrive as the filesystem has them
 * and not as the encoding of some database would spell them (R2.7).
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { unlessAborted } from '@pgcloned/process';
import type { Client } from 'pg';
import { watchForAnswer } from './answer-watch.ts';
import { connectClient, destroyClient, SEARCH_NOTHING_ELSE, sqlState } from './connect.ts';
import {
  type ConnectionSettings,
  idleSessionTimeout,
  socketDirectoryOf,
} from './connection-settings.ts';
import { requireSupportedVersion } from './version.ts';

interface QueryOptions {
  /** False: it may have done its work when it is cancelled, and must not do it again. */
  readonly isRepeatable: boolean;
}

export interface Session extends AsyncDisposable {
  readonly settings: ConnectionSettings;
  readonly backendPid: number;
  readonly versionNum: number;
  /** Our address as the server sees it; null over a unix socket. */
  readonly localAddress: string | null;
  /**
   * On a standby replay cancels what is in its way, at once if it lags: a statement is then repeated, unless it says that it
   * must not be.
   *
   * @param signal Cancels the query on the server; the promise settles once it has ended there, or the session with it.
   * @throws {CloneError} `SOURCE_LOST` if the session has ended or recovery on a standby was in the way of the query,
   *   `SOURCE_RIGHTS_MISSING`, `SOURCE_SETTINGS_UNSUITABLE` where the server says that its settings or state rule the call
   *   out. Other errors of the server are ours: plain.
   */
  query<Row extends object>(
    sql: string,
    parameters: readonly unknown[],
    signal: AbortSignal,
    options?: QueryOptions,
  ): Promise<readonly Row[]>;
  /** Settles with the reason when the session ends without being asked; else never. */
  readonly lost: Promise<CloneError>;
}

const HEARTBEAT_MS = 10_000;
/** After that a cancelled query, or a good-bye, is not waited for any longer and the socket is closed. */
const ENDING_LIMIT_MS = 5_000;

const CANCEL_REQUEST_CODE = 80_877_102;
/** A request that overtakes its query on the way finds the backend idle, and does nothing. */
const CANCEL_AGAIN_MS = 250;

/** serialization_failure: none of our statements could fail so but by replay. */
const IN_THE_WAY_OF_REPLAY = '40001';
/** Ours take milliseconds, and one after the other is hit only where something else is wrong. */
const REPETITIONS_MAX = 20;

/** Set only where they exist: `transaction_timeout` came with 17, and a setting that is unknown would be an error. */
const sessionSettings = (settings: ConnectionSettings): Readonly<Record<string, string>> => ({
  client_encoding: 'SQL_ASCII',
  statement_timeout: '0',
  lock_timeout: '0',
  idle_session_timeout: idleSessionTimeout(settings),
  idle_in_transaction_session_timeout: '0',
  transaction_timeout: '0',
  tcp_keepalives_idle: '10',
  tcp_keepalives_interval: '5',
  tcp_keepalives_count: '3',
  tcp_user_timeout: '25s',
});

const PREPARE_SESSION = `
  SELECT pg_backend_pid() AS "backendPid",
         current_setting('server_version_num')::int AS "versionNum",
         host(inet_client_addr()) AS "localAddress",
         (SELECT count(set_config(name, value, false))
            FROM unnest($1::text[], $2::text[]) AS wanted (name, value)
            JOIN pg_settings USING (name)) AS "settingsApplied"`;

/**
 * @throws {CloneError} `SOURCE_UNREACHABLE`, `SOURCE_AUTHENTICATION_FAILED`, `CONFIGURATION_INVALID`,
 *   `SOURCE_VERSION_UNSUPPORTED`, or `SOURCE_SETTINGS_UNSUITABLE` if a connection pooler stands between.
 */
export async function openSession(
  settings: ConnectionSettings,
  { applicationName, signal }: { readonly applicationName: string; readonly signal: AbortSignal },
): Promise<Session> {
  const client = await connectClient(settings, { applicationName, replication: false, signal });
  const connection = watchConnection(client, applicationName);
  const query = queryWith(client, { settings, applicationName }, connection);
  const wanted = sessionSettings(settings);
  try {
    await query(SEARCH_NOTHING_ELSE, [], signal);
    const [prepared] = await query<{
      backendPid: number;
      versionNum: number;
      localAddress: string | null;
    }>(PREPARE_SESSION, [Object.keys(wanted), Object.values(wanted)], signal);
    if (prepared === undefined) throw new Error('the server answered nothing');
    requireSupportedVersion(prepared.versionNum);
    refusePooler(client, prepared.backendPid, settings);

    const heartbeat = startHeartbeat(query, connection);
    return {
      settings,
      backendPid: prepared.backendPid,
      versionNum: prepared.versionNum,
      localAddress: prepared.localAddress,
      query,
      lost: connection.lost,
      async [Symbol.asyncDispose]() {
        heartbeat.stop();
        await connection.close();
      },
    };
  } catch (error) {
    await connection.close();
    throw error;
  }
}

interface Connection {
  readonly lost: Promise<CloneError>;
  /** Why there is nothing to ask any longer: it was lost, or closed by us. Null while it lives. */
  readonly ending: () => Error | null;
  /** Ends it as lost. */
  readonly fail: (cause: Error) => void;
  /** Queries run one by one; `enter` settles when it is the caller's turn, with the function that ends the turn. */
  readonly enter: () => Promise<() => void>;
  readonly isIdle: () => boolean;
  /** Says good-bye and waits until the server has let go of everything that the session held. Never throws. */
  readonly close: () => Promise<void>;
}

function watchConnection(client: Client, applicationName: string): Connection {
  const { promise: lost, resolve: resolveLost } = Promise.withResolvers<CloneError>();
  // Not `events.once`, which rejects at the first `error` event and here that comes before the end.
  const ended = new Promise<void>((resolve) => client.once('end', resolve));
  let ending: Error | null = null;
  let firstError: Error | null = null;
  let lastInLine: Promise<void> = Promise.resolve();
  let waiting = 0;

  const fail = (cause: Error) => {
    firstError ??= cause;
    void destroyClient(client);
  };
  const enter = async () => {
    const turn = lastInLine;
    const { promise: done, resolve: leave } = Promise.withResolvers<void>();
    lastInLine = done;
    waiting += 1;
    await turn;
    return () => {
      waiting -= 1;
      leave();
    };
  };

  client.on('error', (error: Error) => {
    // The first tells the story ("terminating connection due to …"), those after it only its end.
    firstError ??= error;
  });
  void ended.then(() => {
    if (ending !== null) return;
    const lostBecause = new CloneError('SOURCE_LOST', `the session ${applicationName} was lost`, {
      facts: {
        applicationName,
        reason: firstError?.message ?? 'the connection was closed',
        sqlState: sqlState(firstError),
      },
      hint: 'See the log of the server at this time: an administrator, the server or the network ended the session.',
      cause: firstError,
    });
    ending = lostBecause;
    resolveLost(lostBecause);
  });

  return {
    lost,
    ending: () => ending,
    fail,
    enter,
    isIdle: () => waiting === 0,
    close: async () => {
      const limit = setTimeout(() => void destroyClient(client), ENDING_LIMIT_MS);
      // Leaving in the middle of a query would cut the connection, and the server would notice only later.
      const leave = await enter();
      ending ??= new Error('the session is closed');
      // It rejects where the connection is broken; that it has ended is all that counts.
      client.end().catch(() => {});
      await ended;
      clearTimeout(limit);
      leave();
    },
  };
}

function queryWith(
  client: Client,
  {
    settings,
    applicationName,
  }: { readonly settings: ConnectionSettings; readonly applicationName: string },
  connection: Connection,
): Session['query'] {
  return async <Row extends object>(
    sql: string,
    parameters: readonly unknown[],
    signal: AbortSignal,
    { isRepeatable }: QueryOptions = { isRepeatable: true },
  ) => {
    const ended = new AbortController();
    let cancelling: Promise<void> | undefined;
    let limit: NodeJS.Timeout | undefined;
    const cancel = () => {
      cancelling = cancelUntil(ended.signal, client, settings);
      limit = setTimeout(() => {
        connection.fail(new Error('a cancelled query did not end'));
      }, ENDING_LIMIT_MS);
    };
    const leave = await turnUnlessAborted(connection.enter(), signal);
    try {
      signal.throwIfAborted();
      const ending = connection.ending();
      if (ending !== null) throw ending;
      signal.addEventListener('abort', cancel, { once: true });
      const { processID } = client as Client & { readonly processID: number };
      const watch = watchForAnswer(settings, {
        applicationName,
        backendPid: processID,
        fail: connection.fail,
      });
      try {
        for (let repetitions = 0; ; repetitions++) {
          try {
            const { rows } = await client.query<Row>(sql, [...parameters]);
            signal.throwIfAborted();
            return rows;
          } catch (error) {
            signal.throwIfAborted();
            const isInTheWay = sqlState(error) === IN_THE_WAY_OF_REPLAY;
            if (!isRepeatable || !isInTheWay || repetitions === REPETITIONS_MAX) throw error;
          }
        }
      } finally {
        await watch.stop();
      }
    } catch (error) {
      signal.throwIfAborted();
      throw await explainQueryError(error, connection);
    } finally {
      signal.removeEventListener('abort', cancel);
      clearTimeout(limit);
      ended.abort();
      // A request that is still under way would hit the next query.
      await cancelling;
      leave();
    }
  };
}

/** The query before may wait for a server that is gone; whoever gives up its turn leaves it to the next. */
async function turnUnlessAborted(
  turn: Promise<() => void>,
  signal: AbortSignal,
): Promise<() => void> {
  try {
    return await unlessAborted(turn, signal);
  } catch (error) {
    void turn.then((leave) => {
      leave();
    });
    throw error;
  }
}

/** Errors of class 57P end the session, and so does a broken socket: then the loss is the error. */
async function explainQueryError(error: unknown, connection: Connection): Promise<unknown> {
  const state = sqlState(error);
  // Without a state it did not come from the server: the connection broke, or this session said itself that it is over.
  if (state === null) return connection.ending() ?? (await connection.lost);
  if (!(error instanceof Error)) return error;
  if (state.startsWith('57P')) {
    connection.fail(error);
    return await connection.lost;
  }
  const options = { facts: { sqlState: state, reason: error.message }, cause: error };
  if (state === '42501')
    return new CloneError('SOURCE_RIGHTS_MISSING', 'the source denies a function to the user', {
      ...options,
      hint: 'Run the preflight: it names each missing right with the command that grants it.',
    });
  // object_not_in_prerequisite_state, configuration_limit_exceeded
  if (state === '55000' || state === '53400')
    return new CloneError('SOURCE_SETTINGS_UNSUITABLE', 'the source rules the call out', {
      ...options,
      hint: 'Read the reason in the facts: it names the setting or state of the source.',
    });
  // disk_full
  if (state === '53100')
    return new CloneError('SOURCE_NO_SPACE', 'the source has no space left', {
      ...options,
      hint: 'Make room on the filesystems of the source, then clone again.',
    });
  if (state === IN_THE_WAY_OF_REPLAY)
    return new CloneError('SOURCE_LOST', 'recovery on the source has cancelled a query', {
      ...options,
      hint: 'It is tried again by itself. If it goes on, raise max_standby_streaming_delay on the source, or set hot_standby_feedback = on there.',
    });
  return error;
}

/** Asks until the query has ended, since nobody is told what became of a request. Never throws. */
async function cancelUntil(
  ended: AbortSignal,
  client: Client,
  settings: ConnectionSettings,
): Promise<void> {
  while (!ended.aborted) {
    await requestCancel(client, settings);
    await delay(CANCEL_AGAIN_MS, undefined, { signal: ended }).catch(() => {});
  }
}

/**
 * Asks the server to end the query that runs in this session. Never throws: whoever called waits for the query anyway.
 * Settles once the server has passed the request on. It goes over a connection of its own, in clear, as from libpq.
 */
async function requestCancel(client: Client, settings: ConnectionSettings): Promise<void> {
  const { processID, secretKey } = client as Client & {
    readonly processID: number;
    readonly secretKey: number;
  };
  const request = Buffer.alloc(16);
  request.writeInt32BE(16, 0);
  request.writeInt32BE(CANCEL_REQUEST_CODE, 4);
  request.writeInt32BE(processID, 8);
  request.writeInt32BE(secretKey, 12);
  const directory = socketDirectoryOf(settings);
  const socket =
    directory === null
      ? connect(settings.port, settings.host)
      : connect(`${directory}/.s.PGSQL.${String(settings.port)}`);
  // The query's own limit decides what happens when the request does not get through.
  socket.on('error', () => {});
  socket.setTimeout(ENDING_LIMIT_MS, () => socket.destroy());
  socket.end(request);
  socket.resume();
  await once(socket, 'close').catch(() => {});
}

function startHeartbeat(query: Session['query'], connection: Connection): { stop: () => void } {
  const { signal } = new AbortController();
  const beat = async (): Promise<void> => {
    try {
      await query('SELECT 1', [], signal);
    } catch {
      // The connection is lost or closed, and `lost` says so.
    }
  };
  const timer = setInterval(() => {
    // A query that runs is watched already.
    if (connection.isIdle()) void beat();
  }, HEARTBEAT_MS);
  return {
    stop: () => {
      clearInterval(timer);
    },
  };
}

/** A pooler moves sessions between backends, which would end the backup unnoticed (R3.2). */
function refusePooler(
  client: Client,
  backendPid: number,
  { host, port }: ConnectionSettings,
): void {
  const { processID } = client as Client & { readonly processID: number };
  if (processID === backendPid) return;
  throw new CloneError(
    'SOURCE_SETTINGS_UNSUITABLE',
    'a connection pooler stands before the source',
    {
      facts: { host, port, backendPid, announcedPid: processID },
      hint: "Set host and port of the source to PostgreSQL's own.",
    },
  );
}
