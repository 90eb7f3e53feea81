/**
 * A source as a DBA prepares it for pgcloned: a primary, a role with the rights that a clone needs and no more, its
 * password in a file, and an sshd.
 */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import type { OtherHost } from './other-host.ts';
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

/**
 * @param options Of the primary. The role comes in by password over loopback; `postgres` needs none.
 * @param from Another host than this one from which it is reached as well, and then is cloned.
 */
export async function startSource(
  options: Omit<PrimaryOptions, 'hba'> = {},
  from?: Pick<OtherHost, 'address' | 'secondAddress' | 'clientAddress'>,
): Promise<Source> {
  const host = from?.address ?? '127.0.0.1';
  // By its own address as well: a clone that was made for the other host may be looked at from here.
  const clients = ['127.0.0.1', ...(from === undefined ? [] : [from.clientAddress, from.address])];
  await using parts = new AsyncDisposableStack();
  const primary = parts.use(
    await startPrimary({
      ...options,
      listen: options.listen ?? [...new Set(['127.0.0.1', host])].join(', '),
      hba: [
        'host all postgres 127.0.0.1/32 trust',
        ...clients.flatMap((client) => [
          `host all ${ROLE} ${client}/32 scram-sha-256`,
          `host replication ${ROLE} ${client}/32 scram-sha-256`,
        ]),
      ],
    }),
  );
  const sshd = parts.use(
    await startSshd({ alsoListen: from === undefined ? [] : [host, from.secondAddress] }),
  );
  const password = randomBytes(16).toString('hex');
  await primary.query(`CREATE ROLE ${ROLE} LOGIN REPLICATION PASSWORD '${password}'`);
  await primary.query(`GRANT pg_monitor TO ${ROLE}`);
  await primary.query(
    `GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO ${ROLE}`,
  );
  const passFile = join(sshd.directory, 'pgpass');
  await writePartsFile(passFile, `${host}:${String(primary.port)}:*:${ROLE}:${password}\n`);
  const owned = parts.move();
  return {
    primary,
    sshd,
    password,
    passFile,
    configuration: {
      host,
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
