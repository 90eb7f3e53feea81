/**
 * Opens one connection, with libpq's meaning of `sslmode`, and says what stands in the way when it cannot.
 *
 * `pg` alone takes TLS or leaves it; libpq's `allow` and `prefer` try one way and then the other, also when the server
 * refused the user on the first. What went wrong is told by SQLSTATE and never by text, since servers speak many languages.
 */
import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import type { ConnectionOptions } from 'node:tls';
import { CloneError, type ErrorFacts, type Remedy } from '@pgcloned/contract';
import { codeOf } from '@pgcloned/process';
import { Client, type ClientConfig, DatabaseError } from 'pg';
import {
  type ConnectionSettings,
  idleSessionTimeout,
  isSocketDirectory,
  socketDirectoryOf,
} from './connection-settings.ts';
import { formatPassfileLine } from './passfile.ts';
import { quoteIdentifier } from './quote-identifier.ts';

const CONNECT_TIMEOUT_MS = 10_000;
const KEEPALIVE_DELAY_MS = 10_000;

export interface ConnectOptions {
  readonly applicationName: string;
  /** A connection to a WAL sender, which takes replication commands in place of SQL. */
  readonly replication: boolean;
  readonly signal: AbortSignal;
}

/**
 * @throws {CloneError} `SOURCE_UNREACHABLE`, `SOURCE_AUTHENTICATION_FAILED`, `SOURCE_RIGHTS_MISSING` (replication only),
 *   `SOURCE_NO_WAL_SENDER` (replication only), `CONFIGURATION_INVALID` for a database that does not exist.
 * @throws The signal's reason if it aborts; by then the socket is closed.
 */
export async function connectClient(
  settings: ConnectionSettings,
  options: ConnectOptions,
): Promise<Client> {
  const failures: unknown[] = [];
  for (const ssl of await waysOf(settings)) {
    options.signal.throwIfAborted();
    try {
      return await connectOnce(settings, ssl, options);
    } catch (error) {
      options.signal.throwIfAborted();
      failures.push(error);
    }
  }
  // A wrong password says more than what the second way adds: that it is not open at all.
  const telling = failures.find((error) => sqlState(error) === '28P01') ?? failures.at(-1);
  throw explainRefusal(telling, settings, options);
}

/** Ends the connection without a word. Settles once it is closed. */
export async function destroyClient(client: Client): Promise<void> {
  const socket = socketOf(client);
  if (socket.destroyed) return;
  await new Promise((resolve) => {
    socket.once('close', resolve);
    socket.destroy();
  });
}

/**
 * To be asked first of all: whoever owns a database may set a `search_path` for it in which functions of theirs stand before
 * those of the server, and what we call runs with our rights. After it only `pg_catalog` is searched.
 */
export const SEARCH_NOTHING_ELSE = `SELECT pg_catalog.set_config('search_path', '', false)`;

export function sqlState(error: unknown): string | null {
  return error instanceof DatabaseError ? (error.code ?? null) : null;
}

/** The TLS settings to try, in order; `false` is a connection in clear. */
async function waysOf(
  settings: ConnectionSettings,
): Promise<readonly (ConnectionOptions | false)[]> {
  const { sslmode, sslRootCertFile } = settings;
  // libpq ignores sslmode on a unix socket.
  if (sslmode === 'disable' || socketDirectoryOf(settings) !== null) return [false];
  const encrypted: ConnectionOptions = {
    rejectUnauthorized: sslRootCertFile !== null,
    ...(sslRootCertFile !== null && { ca: await readFile(sslRootCertFile) }),
    ...(sslmode !== 'verify-full' && { checkServerIdentity: () => undefined }),
  };
  if (sslmode === 'allow') return [false, encrypted];
  if (sslmode === 'prefer') return [encrypted, false];
  return [encrypted];
}

async function connectOnce(
  settings: ConnectionSettings,
  ssl: ConnectionOptions | false,
  { applicationName, replication, signal }: ConnectOptions,
): Promise<Client> {
  const config: ClientConfig & { replication?: 'true' } = {
    host: socketDirectoryOf(settings) ?? settings.host,
    port: settings.port,
    user: settings.user,
    database: settings.database,
    // As a function, so that the library does not look for one in the environment or in ~/.pgpass.
    password: () => settings.password ?? '',
    ssl,
    application_name: applicationName,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
    keepAliveInitialDelayMillis: KEEPALIVE_DELAY_MS,
    // Not in all of them: poolers refuse options, before we could say that it is a pooler.
    ...(settings.tunnelDirectory !== null && {
      options: `-c idle_session_timeout=${idleSessionTimeout(settings)}`,
    }),
    ...(replication && { replication: 'true' }),
  };
  const client = new Client(config);
  // Without a listener the loss of an idle connection would end the process; sessions listen on their own.
  client.on('error', () => {});
  const abort = () => void socketOf(client).destroy();
  signal.addEventListener('abort', abort, { once: true });
  try {
    await client.connect();
    signal.throwIfAborted();
    return client;
  } catch (error) {
    await destroyClient(client);
    throw error;
  } finally {
    signal.removeEventListener('abort', abort);
  }
}

function socketOf(client: Client): Socket {
  return client.connection.stream as Socket;
}

function explainRefusal(
  error: unknown,
  settings: ConnectionSettings,
  { replication }: ConnectOptions,
): unknown {
  if (!(error instanceof Error)) return error;
  const { host, port, user, database } = settings;
  const where = isSocketDirectory(host)
    ? `${host}/.s.PGSQL.${String(port)}`
    : `${host}:${String(port)}`;
  const facts: ErrorFacts = { host, port, user, database, reason: error.message };
  const fail = (
    code: CloneError['code'],
    message: string,
    hint: string,
    remedies: readonly Remedy[] = [],
  ) => new CloneError(code, message, { facts, hint, remedies, cause: error });

  switch (sqlState(error)) {
    case '28P01':
      return fail(
        'SOURCE_AUTHENTICATION_FAILED',
        `the server at ${where} refuses the password of ${user}`,
        passwordHint(settings),
      );
    case '28000':
      // Past pg_hba.conf, which has admitted the user: no line in it would help.
      if (isAboutRole(error))
        return fail(
          'SOURCE_AUTHENTICATION_FAILED',
          `the server at ${where} has no role ${user} that may log in`,
          `Create the role if there is none. Else run on the source, or on its primary if it is a standby: ALTER ROLE ${quoteIdentifier(user)} LOGIN;`,
          [sql(`ALTER ROLE ${quoteIdentifier(user)} LOGIN;`, database)],
        );
      return replication
        ? fail(
            'SOURCE_RIGHTS_MISSING',
            `the server at ${where} admits no replication connection of ${user}`,
            `Add this line to pg_hba.conf of the source, then run SELECT pg_reload_conf(): ${hbaLine(null, settings, error)}`,
            admit(null, settings, error),
          )
        : fail(
            'SOURCE_AUTHENTICATION_FAILED',
            `the server at ${where} does not admit ${user} to database ${database}`,
            `Check the user, or add this line to pg_hba.conf of the source, then run SELECT pg_reload_conf(): ${hbaLine(database, settings, error)}`,
            admit(database, settings, error),
          );
    case '42501':
      if (!replication) {
        const grant = `GRANT CONNECT ON DATABASE ${quoteIdentifier(database)} TO ${quoteIdentifier(user)};`;
        return fail(
          'SOURCE_RIGHTS_MISSING',
          `${user} may not connect to database ${database}`,
          `Run on the source, or on its primary if it is a standby: ${grant}`,
          [sql(grant, database)],
        );
      }
      return fail(
        'SOURCE_RIGHTS_MISSING',
        `${user} may not connect for replication`,
        `Run on the source: ALTER ROLE ${quoteIdentifier(user)} REPLICATION;`,
        [sql(`ALTER ROLE ${quoteIdentifier(user)} REPLICATION;`, database)],
      );
    case '3D000':
      return fail(
        'CONFIGURATION_INVALID',
        `the server at ${where} has no database ${database}`,
        'Set the database of the source to one that exists.',
      );
    case '53300':
      if (isAboutRole(error))
        return fail(
          'SOURCE_UNREACHABLE',
          `the server at ${where} has no free connection for ${user}`,
          `Raise the limit of the role with ALTER ROLE ${quoteIdentifier(user)} CONNECTION LIMIT, or wait until others have gone.`,
        );
      return replication
        ? fail(
            'SOURCE_NO_WAL_SENDER',
            `the server at ${where} has no free WAL sender`,
            'Raise max_wal_senders on the source, which takes a restart, or wait for another backup to end.',
          )
        : fail(
            'SOURCE_UNREACHABLE',
            `the server at ${where} has no free connection`,
            'Raise max_connections on the source, or wait until others have gone.',
          );
    case null:
      break;
    default:
      return fail(
        'SOURCE_UNREACHABLE',
        `the server at ${where} accepts no session`,
        'Read the reason in the facts and in the log of the server.',
      );
  }
  if (/^SASL: .*client password must be/.test(error.message))
    return fail(
      'SOURCE_AUTHENTICATION_FAILED',
      `the server at ${where} wants a password of ${user}, and there is none`,
      passwordHint(settings),
    );
  const isUnencrypted = error.message === 'The server does not support SSL connections';
  const isAboutTls = /CERT|TLS|SSL|SIGNATURE/.test(codeOf(error) ?? '');
  if (isUnencrypted || isAboutTls)
    return fail(
      'SOURCE_UNREACHABLE',
      isUnencrypted
        ? `the server at ${where} does not offer TLS`
        : `the certificate of the server at ${where} cannot be trusted`,
      isUnencrypted
        ? `Turn on ssl on the source, or choose another sslmode than ${settings.sslmode}.`
        : 'Check sslRootCertFile, and with verify-full that the certificate names this host.',
    );
  return fail(
    'SOURCE_UNREACHABLE',
    `there is no answer from a PostgreSQL server at ${where}`,
    'Check that the server runs, listens on this address and port, and that no firewall is between.',
  );
}

/** Whether the server speaks of the role and not of the connection. It names the place in its source in no language. */
const isAboutRole = (error: Error) =>
  error instanceof DatabaseError && error.routine === 'InitializeSessionUserId';

function passwordHint({ passFileRefused, ...settings }: ConnectionSettings): string {
  const line = formatPassfileLine({ ...settings, database: '*' }, 'PASSWORD').trimEnd();
  const hint = `Put the line ${line} with the password of ${settings.user} into the passFile of the source, or into ~/.pgpass, with mode 0600.`;
  return passFileRefused === null ? hint : `${hint} Not used: ${passFileRefused}.`;
}

const sql = (text: string, database: string): Remedy => ({
  kind: 'sql',
  on: 'source',
  where: database,
  text,
});

/** The first line that fits decides, so ours stands before all others. */
function admit(
  database: string | null,
  settings: ConnectionSettings,
  error: Error,
): readonly Remedy[] {
  const text = hbaLine(database, settings, error);
  return [
    { kind: 'prepend', on: 'source', where: 'pg_hba.conf', text },
    sql('SELECT pg_reload_conf();', 'postgres'),
  ];
}

/**
 * The server says from which address it sees us; the quotes around it depend on its language.
 *
 * @param database Null: replication, which is a keyword there and no database.
 */
function hbaLine(
  database: string | null,
  { host, user }: ConnectionSettings,
  error: Error,
): string {
  const names = `${database === null ? 'replication' : quoteForHba(database)} ${quoteForHba(user)}`;
  if (isSocketDirectory(host)) return `local ${names} peer`;
  const address = /\b(?:\d{1,3}\.){3}\d{1,3}\b|[0-9a-f]*:[0-9a-f:]*:[0-9a-f.]*/i.exec(
    error.message,
  );
  const network =
    address === null ? 'ADDRESS/32' : `${address[0]}/${address[0].includes(':') ? '128' : '32'}`;
  return `host ${names} ${network} scram-sha-256`;
}

/** Quotes take blanks their meaning, and a keyword its own. */
function quoteForHba(name: string): string {
  return /^[a-z_][a-z0-9_$-]*$/i.test(name) && !HBA_KEYWORDS.test(name)
    ? name
    : `"${name.replaceAll('"', '""')}"`;
}

const HBA_KEYWORDS = /^(?:all|sameuser|samerole|samegroup|replication)$/;
