/**
 * A source as a DBA prepares it for pgcloned: a primary, a role with the rights that a clone needs and no more, its
 * password in a file, and an sshd.
 */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { writePartsFile } from './parts-user.ts';
import { type PostgresServer, type PrimaryOptions, startPrimary } from './postgres-server.ts';
import { type SshServer, startSshd } from './sshd.ts';

const ROLE = 'cloner';

export interface Source extends AsyncDisposable {
  readonly primary: PostgresServer;
  readonly sshd: SshServer;
  readonly password: string;
  readonly passFile: string;
  /** What goes below `sources:` in pgcloned.yaml under a name of the test's choice. */
  readonly configuration: {
    readonly host: string;
    readonly port: number;
    readonly user: string;
    readonly database: string;
    readonly passFile: string;
    readonly ssh: {
      readonly user: string;
      readonly port: number;
      readonly privateKeyFile: string;
      readonly knownHostsFile: string;
    };
  };
}

/** @param options Of the primary. The role comes in by password over loopback; `postgres` needs none. */
export async function startSource(options: Omit<PrimaryOptions, 'hba'> = {}): Promise<Source> {
  await using parts = new AsyncDisposableStack();
  const primary = parts.use(
    await startPrimary({
      ...options,
      hba: [
        'host all postgres 127.0.0.1/32 trust',
        `host all ${ROLE} 127.0.0.1/32 scram-sha-256`,
        `host replication ${ROLE} 127.0.0.1/32 scram-sha-256`,
      ],
    }),
  );
  const sshd = parts.use(await startSshd());
  const password = randomBytes(16).toString('hex');
  await primary.query(`CREATE ROLE ${ROLE} LOGIN REPLICATION PASSWORD '${password}'`);
  await primary.query(`GRANT pg_monitor TO ${ROLE}`);
  await primary.query(
    `GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO ${ROLE}`,
  );
  const passFile = join(sshd.directory, 'pgpass');
  await writePartsFile(passFile, `127.0.0.1:${String(primary.port)}:*:${ROLE}:${password}\n`);
  const owned = parts.move();
  return {
    primary,
    sshd,
    password,
    passFile,
    configuration: {
      host: primary.host,
      port: primary.port,
      user: ROLE,
      database: 'postgres',
      passFile,
      ssh: {
        user: sshd.user,
        port: sshd.port,
        privateKeyFile: sshd.privateKeyFile,
        knownHostsFile: sshd.knownHostsFile,
      },
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
