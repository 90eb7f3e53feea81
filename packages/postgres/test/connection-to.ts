/** Settings that lead to a server of the testbed, by TCP and as superuser unless a test wants otherwise. */
import type { PostgresServer } from '@pgcloned/testbed';
import type { ConnectionSettings } from '../src/index.ts';

export function connectionTo(
  server: Pick<PostgresServer, 'host' | 'port'>,
  more: Partial<ConnectionSettings> = {},
): ConnectionSettings {
  return {
    host: server.host,
    port: server.port,
    tunnelDirectory: null,
    user: 'postgres',
    database: 'postgres',
    password: null,
    passFileRefused: null,
    sslmode: 'disable',
    sslRootCertFile: null,
    ...more,
  };
}
