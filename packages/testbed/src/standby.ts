/** Real standbys, made by pg_basebackup as a DBA makes them. */
import { appendFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runAsPartsUser, writePartsFile } from './parts-user.ts';
import { type PostgresServer, startCluster } from './postgres-server.ts';
import { scratchDirectory } from './scratch-directory.ts';
import type { Source } from './source.ts';

export interface StandbyOptions {
  /** They win over those of its upstream, which it has otherwise. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Location there and here; there is no other way on one host. */
  readonly tablespaces?: Readonly<Record<string, string>>;
}

export interface StandbySourceOptions extends StandbyOptions {
  /** Where it is reached. Default: where its primary is. */
  readonly address?: string;
}

/** A standby that streams from `upstream` over its unix socket, without a slot. */
export async function startStandby(
  upstream: PostgresServer,
  { settings = {}, tablespaces = {} }: StandbyOptions = {},
): Promise<PostgresServer> {
  await using parts = new AsyncDisposableStack();
  const { path } = parts.use(await scratchDirectory());
  const dataDirectory = join(path, 'data');
  const { binDirectory, socketDirectory, port } = upstream;
  const conninfo = `host=${socketDirectory} port=${String(port)} user=postgres`;
  await runAsPartsUser([
    ...[join(binDirectory, 'pg_basebackup'), '--pgdata', dataDirectory, '--dbname', conninfo],
    ...['--checkpoint=fast', '--no-sync'],
    ...Object.entries(tablespaces).map(([there, here]) => `--tablespace-mapping=${there}=${here}`),
  ]);
  // Its own --write-recovery-conf names options that its libpq knows, and that of an older server may not.
  await appendFile(
    join(dataDirectory, 'postgresql.auto.conf'),
    `primary_conninfo = '${conninfo}'\n`,
  );
  await writePartsFile(join(dataDirectory, 'standby.signal'), '');
  const server = parts.use(await startCluster(dataDirectory, { binDirectory, settings }));
  const owned = parts.move();
  return {
    ...server,
    get pid() {
      return server.pid;
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

export interface StandbySource extends Pick<Source, 'configuration'>, AsyncDisposable {
  readonly standby: PostgresServer;
}

/** A standby of the primary of `source`, which is cloned in its place. Disposing ends the standby alone. */
export async function startStandbyOf(
  { primary, configuration, password }: Source,
  { address, settings, ...options }: StandbySourceOptions = {},
): Promise<StandbySource> {
  const { user, passFile } = configuration;
  const host = address ?? configuration.host;
  const standby = await startStandby(primary, {
    ...options,
    settings: {
      listen_addresses: [...new Set(['127.0.0.1', host])].join(', '),
      ...settings,
    },
  });
  await appendFile(passFile, `${host}:${String(standby.port)}:*:${user}:${password}\n`);
  return {
    standby,
    configuration: { ...configuration, host, port: standby.port },
    [Symbol.asyncDispose]: () => standby[Symbol.asyncDispose](),
  };
}
