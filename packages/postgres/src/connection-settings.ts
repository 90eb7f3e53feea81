/**
 * How a cluster is reached, resolved once for both of our ways in: the `pg` library and the programs that use libpq.
 *
 * Both get the same host, the same password and libpq's meaning of `sslmode`. A root certificate that exists is always
 * used to check the server, in any mode; only `verify-ca` and `verify-full` insist on having one.
 */
import { access } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { CloneError, type ServerAddress, type SourceConfiguration } from '@pgcloned/contract';
import { quoteForShell } from '@pgcloned/process';
import { findPassword, OPEN_TO_OTHERS, type PassfileKey, readPassfile } from './passfile.ts';

export interface ConnectionSettings {
  /** A name, an address, or the directory of a unix socket. */
  readonly host: string;
  readonly port: number;
  /**
   * The directory of a unix socket, named after `port`, that leads to the server through SSH. Null: `host` is connected to.
   * TLS is none of its business: libpq knows none on such sockets.
   */
  readonly tunnelDirectory: string | null;
  readonly user: string;
  readonly database: string;
  readonly password: string | null;
  /** Why a passfile was passed over, for the hint of a later refusal. */
  readonly passFileRefused: string | null;
  readonly sslmode: SourceConfiguration['sslmode'];
  readonly sslRootCertFile: string | null;
}

/**
 * Finds the password: in `source.passFile`, else in `fallback`, else in ~/.pgpass.
 *
 * @param fallback What the environment of `pgcloned run` offers: PGPASSWORD and PGPASSFILE.
 * @throws {CloneError} `CONFIGURATION_INVALID` if a file that was asked for by name cannot be used.
 */
export async function resolveConnection(
  source: ServerAddress &
    Pick<SourceConfiguration, 'user' | 'database' | 'passFile' | 'sslmode' | 'sslRootCertFile'>,
  fallback: { readonly password?: string; readonly passFile?: string } = {},
): Promise<ConnectionSettings> {
  const { host, port, user, database, sslmode } = source;
  const key = { host, port, database, user };
  const named = await passwordFrom(source.passFile, key);
  if (named?.refused) throw unusableFile('passFile', source.passFile, named.refused);
  const password = named?.password ?? fallback.password ?? null;
  const implied =
    password === null
      ? await passwordFrom(fallback.passFile ?? join(homedir(), '.pgpass'), key)
      : null;
  return {
    host,
    port,
    tunnelDirectory: null,
    user,
    database,
    password: password ?? implied?.password ?? null,
    passFileRefused: implied?.refused ?? null,
    sslmode,
    sslRootCertFile: await findRootCertificate(source),
  };
}

export function isSocketDirectory(host: string): boolean {
  return host.startsWith('/');
}

/** Where the unix socket lies that is connected to; null: it goes by TCP. */
export function socketDirectoryOf({
  host,
  tunnelDirectory,
}: Pick<ConnectionSettings, 'host' | 'tunnelDirectory'>): string | null {
  return tunnelDirectory ?? (isSocketDirectory(host) ? host : null);
}

/**
 * What `idle_session_timeout` has to be in all of our connections, so that they die on the server within seconds of us.
 *
 * By TCP the keepalives of R3.2 do that, and no timeout may end an idle session. At the end of a tunnel they reach no
 * further than sshd, which may hold a dead connection for hours: there the server itself ends what says nothing, and we say
 * something every ten seconds.
 */
export function idleSessionTimeout({
  tunnelDirectory,
}: Pick<ConnectionSettings, 'tunnelDirectory'>): string {
  return tunnelDirectory === null ? '0' : '30s';
}

/**
 * The environment of a libpq program. It holds the password: the environment of a process can be read by its own user
 * only, its arguments by everybody.
 *
 * @param options Command-line options for the server side, as in PGOPTIONS.
 */
export function libpqEnvironment(
  settings: ConnectionSettings,
  { applicationName, options }: { readonly applicationName: string; readonly options?: string },
): Record<string, string> {
  return {
    LC_ALL: 'C',
    PGHOST: socketDirectoryOf(settings) ?? settings.host,
    PGPORT: String(settings.port),
    PGUSER: settings.user,
    PGDATABASE: settings.database,
    PGAPPNAME: applicationName,
    PGSSLMODE: settings.sslmode,
    PGCONNECT_TIMEOUT: '10',
    // `pg` knows no GSSAPI, and both shall take the same way.
    PGGSSENCMODE: 'disable',
    ...(settings.sslRootCertFile !== null && { PGSSLROOTCERT: settings.sslRootCertFile }),
    ...(settings.password !== null && { PGPASSWORD: settings.password }),
    ...(options !== undefined && { PGOPTIONS: options }),
  };
}

/** A replication connection looks under the database name `replication`, so a line for that serves both. */
async function passwordFrom(
  path: string | null,
  key: PassfileKey,
): Promise<{ readonly password: string | null; readonly refused: string | null } | null> {
  if (path === null) return null;
  const file = await readPassfile(path);
  if (file.state === 'missing') return { password: null, refused: `${path} does not exist` };
  if (file.state === 'refused') return { password: null, refused: file.reason };
  const password =
    findPassword(file.content, key) ??
    findPassword(file.content, { ...key, database: 'replication' });
  return { password, refused: null };
}

async function findRootCertificate({
  sslmode,
  sslRootCertFile,
}: Pick<SourceConfiguration, 'sslmode' | 'sslRootCertFile'>): Promise<string | null> {
  const path = sslRootCertFile ?? join(homedir(), '.postgresql', 'root.crt');
  const isThere = await access(path).then(
    () => true,
    () => false,
  );
  if (isThere) return path;
  if (sslRootCertFile !== null || sslmode === 'verify-ca' || sslmode === 'verify-full')
    throw unusableFile('sslRootCertFile', path, `${path} cannot be read`);
  return null;
}

function unusableFile(key: string, path: string | null, reason: string): CloneError {
  return new CloneError('CONFIGURATION_INVALID', reason, {
    facts: { key, path },
    hint:
      key === 'passFile'
        ? `Make ${path ?? 'it'} a plain file of the user that runs pgcloned, with mode 0600.`
        : `Put the certificate of the authority that signed the server's there, or set ${key}.`,
    remedies:
      path !== null && reason.endsWith(OPEN_TO_OTHERS)
        ? [{ kind: 'shell', on: 'host', where: null, text: `chmod 0600 ${quoteForShell(path)}` }]
        : [],
  });
}
