/** Where a password comes from, and that `pg` and libpq take the same way to a real server in every sslmode. */
import { chmod, chown, copyFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import {
  type PostgresServer,
  partsUser,
  runAsPartsUser,
  runsAsRoot,
  scratchDirectory,
  startPrimary,
} from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import {
  type ConnectionSettings,
  libpqEnvironment,
  openSession,
  resolveConnection,
} from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const source = {
  host: 'db1',
  port: 5432,
  user: 'cloner',
  database: 'postgres',
  passFile: null,
  sslmode: 'prefer',
  sslRootCertFile: null,
} as const;

test('the named passfile comes before the environment, and that before its file', async () => {
  await using scratch = await scratchDirectory();
  const passFile = await passfile(scratch.path, 'named', '*:*:*:cloner:named');
  const other = await passfile(scratch.path, 'other', '*:*:*:cloner:other');
  const password = async (...[more, fallback]: Parameters<typeof resolve>) =>
    (await resolve(more, fallback)).password;

  expect(await password({ passFile }, { password: 'env', passFile: other })).toBe('named');
  expect(await password({}, { password: 'env', passFile: other })).toBe('env');
  expect(await password({}, { passFile: other })).toBe('other');
});

test('a line for replication serves for SQL, too', async () => {
  await using scratch = await scratchDirectory();
  const passFile = await passfile(scratch.path, 'pass', 'db1:5432:replication:cloner:secret');

  expect((await resolve({ passFile })).password).toBe('secret');
});

test('a passfile that others may read is refused when it was named, and passed over when not', async () => {
  await using scratch = await scratchDirectory();
  const passFile = await passfile(scratch.path, 'open', '*:*:*:*:secret');
  await chmod(passFile, 0o644);

  await expect(resolve({ passFile })).rejects.toMatchObject({
    code: 'CONFIGURATION_INVALID',
    message: `${passFile} has group or world access`,
    hint: expect.stringContaining('mode 0600'),
  });
  expect(await resolve({}, { passFile })).toMatchObject({
    password: null,
    passFileRefused: `${passFile} has group or world access`,
  });
});

test('a named file that is not there is an error', async () => {
  await expect(resolve({ passFile: '/nowhere/pgpass' })).rejects.toMatchObject({
    code: 'CONFIGURATION_INVALID',
  });
  await expect(resolve({ sslRootCertFile: '/nowhere/ca.crt' })).rejects.toMatchObject({
    code: 'CONFIGURATION_INVALID',
    facts: { key: 'sslRootCertFile', path: '/nowhere/ca.crt' },
  });
});

test('a program of libpq finds no password in its arguments and the same one in its environment', () => {
  const environment = libpqEnvironment(
    { ...source, tunnelDirectory: null, password: 'secret', passFileRefused: null },
    { applicationName: 'pgcloned_1', options: '-c lock_timeout=0' },
  );

  expect(environment).toMatchObject({
    PGHOST: 'db1',
    PGPORT: '5432',
    PGUSER: 'cloner',
    PGPASSWORD: 'secret',
    PGSSLMODE: 'prefer',
    PGAPPNAME: 'pgcloned_1',
    PGOPTIONS: '-c lock_timeout=0',
  });
});

test('through a tunnel both go to its socket, in clear, and the server ends what falls silent', async () => {
  await using server = await startPrimary();
  // The socket of the server itself stands for one that leads there.
  const tunnelled = connectionTo(server, {
    host: 'db1',
    sslmode: 'require',
    tunnelDirectory: server.socketDirectory,
  });

  expect(libpqEnvironment(tunnelled, { applicationName: 'pgcloned_1' })).toMatchObject({
    PGHOST: server.socketDirectory,
    PGPORT: String(server.port),
  });
  await using session = await openSession(tunnelled, { applicationName: 'pgcloned_1', signal });
  expect(await session.query('SHOW idle_session_timeout', [], signal)).toEqual([
    { idle_session_timeout: '30s' },
  ]);
});

test('both take the same way in every sslmode, with TLS and without, and refuse the same certificates', async () => {
  await using scratch = await scratchDirectory();
  await using plain = await startPrimary();
  await using encrypted = await startPrimary();
  const { authority, stranger } = await turnOnTls(encrypted, scratch.path);
  const modes = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;
  const hosts = ['127.0.0.1', 'localhost'];
  const cases = [plain, encrypted].flatMap((server) =>
    modes.flatMap((sslmode) =>
      [null, authority, stranger]
        .filter((ca) => ca !== null || !sslmode.startsWith('verify'))
        .flatMap((sslRootCertFile) =>
          hosts.map((host) => connectionTo(server, { host, sslmode, sslRootCertFile })),
        ),
    ),
  );

  for (const settings of cases) {
    const { sslmode, host, sslRootCertFile } = settings;
    const label = `${sslmode} ${host} ${sslRootCertFile ?? ''} ${String(settings.port)}`;
    expect(`${label}: ${await usesTlsByPg(settings)}`).toBe(
      `${label}: ${await usesTlsByLibpq(settings, encrypted)}`,
    );
  }
}, 60_000);

async function resolve(
  more: Partial<Parameters<typeof resolveConnection>[0]>,
  fallback?: Parameters<typeof resolveConnection>[1],
): Promise<ConnectionSettings> {
  return await resolveConnection({ ...source, ...more }, fallback);
}

async function passfile(directory: string, name: string, content: string): Promise<string> {
  const path = join(directory, name);
  await writeFile(path, `${content}\n`, { mode: 0o600 });
  return path;
}

const USES_TLS = 'SELECT ssl::text AS tls FROM pg_stat_ssl WHERE pid = pg_backend_pid()';

async function usesTlsByPg(settings: ConnectionSettings): Promise<string> {
  try {
    await using session = await openSession(settings, { applicationName: 'test', signal });
    const [row] = await session.query<{ tls: string }>(USES_TLS, [], signal);
    return row?.tls ?? '';
  } catch (error) {
    return (error as { code?: string }).code === 'SOURCE_UNREACHABLE' ? 'refused' : String(error);
  }
}

async function usesTlsByLibpq(
  settings: ConnectionSettings,
  server: PostgresServer,
): Promise<string> {
  const { status, stdout } = await runProcess(
    {
      file: join(server.binDirectory, 'psql'),
      args: ['-XAtc', USES_TLS],
      env: libpqEnvironment(settings, { applicationName: 'test' }),
    },
    { signal, accept: 'any' },
  );
  return status === 0 ? stdout.toString().trim() : 'refused';
}

/** The certificate is for `localhost` alone; the stranger's authority has not signed it. */
async function turnOnTls(
  server: PostgresServer,
  directory: string,
): Promise<{ authority: string; stranger: string }> {
  const make = async (name: string) => {
    const [key, certificate] = [join(directory, `${name}.key`), join(directory, `${name}.crt`)];
    await runAsPartsUser([
      ...['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256'],
      ...[
        '-nodes',
        '-days',
        '2',
        '-subj',
        '/CN=localhost',
        '-addext',
        'subjectAltName=DNS:localhost',
      ],
      ...['-keyout', key, '-out', certificate],
    ]);
    return { key, certificate };
  };
  const own = await make('own');
  const stranger = await make('stranger');
  for (const [file, name] of [
    [own.key, 'server.key'],
    [own.certificate, 'server.crt'],
  ] as const) {
    const path = join(server.dataDirectory, name);
    await copyFile(file, path);
    await chmod(path, 0o600);
    if (runsAsRoot) await chown(path, partsUser.uid, partsUser.gid);
  }
  await server.query('ALTER SYSTEM SET ssl = on');
  await server.stop();
  await server.start();
  return { authority: own.certificate, stranger: stranger.certificate };
}
