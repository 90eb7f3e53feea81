/** The way to a real database through a real sshd. */
import { readdir, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SourceConfiguration, serversOf } from '@pgcloned/contract';
import { type ConnectionSettings, openSession, probeReplication } from '@pgcloned/postgres';
import { type Source, scratchDirectory, startSource } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Cleanup, withCleanup } from '../src/cleanup.ts';
import { removeDeadTunnels } from '../src/database-tunnel.ts';
import { reachDatabase } from '../src/reach-database.ts';
import type { SourceRun } from '../src/source-host.ts';

const { signal } = new AbortController();
const owned = new AsyncDisposableStack();
let source: Source;
/** A target that nobody makes: its lock file would be called by it. */
let target = '';

beforeAll(async () => {
  source = owned.use(await startSource());
  target = join(owned.use(await scratchDirectory()).path, 'main');
});

afterAll(async () => {
  await owned.disposeAsync();
});

function runOf(cleanup: Cleanup, changes: object = {}, ssh: object = {}): SourceRun {
  const configuration = SourceConfiguration.parse({
    ...source.configuration,
    ...changes,
    ssh: { ...source.configuration.ssh, tunnelDatabase: true, ...ssh },
  });
  const plan = {
    source: configuration,
    password: null,
    host: { defaultSshKeyFiles: [], defaultKnownHostsFiles: [], sshAgentSocket: null },
  } as unknown as SourceRun['plan'];
  return { plan, signal, cleanup };
}

async function reach(run: SourceRun): Promise<ConnectionSettings> {
  const [server = { host: '', port: 0 }] = serversOf(run.plan.source);
  return await reachDatabase(run, { server, dataDirectory: target });
}

async function throughTunnel(
  work: (settings: ConnectionSettings) => Promise<void>,
  ...how: [changes?: object, ssh?: object]
): Promise<void> {
  const leftovers: unknown[] = [];
  await withCleanup(
    async (cleanup) => {
      await work(await reach(runOf(cleanup, ...how)));
    },
    (step, error) => leftovers.push([step, error]),
  );
  expect(leftovers).toEqual([]);
}

async function whoSpeaks(settings: ConnectionSettings): Promise<string> {
  await using session = await openSession(settings, { applicationName: 'tunnel-test', signal });
  const [row] = await session.query<{ name: string }>(
    'SELECT current_user::text AS name',
    [],
    signal,
  );
  return row?.name ?? '';
}

test('SQL and replication go through it, nobody else can use it, and nothing stays of it', async () => {
  let directory = '';

  await throughTunnel(async (settings) => {
    directory = settings.tunnelDirectory ?? '';
    expect((await stat(directory)).mode & 0o777).toBe(0o700);
    expect(settings).toMatchObject({ host: '127.0.0.1', port: source.primary.port });
    expect(await whoSpeaks(settings)).toBe('cloner');
    const { systemIdentifier } = await probeReplication(settings, {
      applicationName: 'tunnel-test',
      signal,
    });
    expect(systemIdentifier).toMatch(/^\d+$/);
  });

  await expect(readdir(directory)).rejects.toThrow('ENOENT');
});

test('several can be opened and closed at the same time', async () => {
  const open = async () => {
    await throughTunnel(async () => {});
  };

  for (let round = 1; round <= 15; round += 1) await Promise.all([open(), open(), open(), open()]);
});

test('that of a preflight lies where the next preflight looks for what a killed one left', async () => {
  let directory = '';

  await withCleanup(
    async (cleanup) => {
      const [server = { host: '', port: 0 }] = serversOf(runOf(cleanup).plan.source);
      const settings = await reachDatabase(runOf(cleanup), { server, dataDirectory: null });
      directory = settings.tunnelDirectory ?? '';
      expect(directory).toMatch(new RegExp(`^${tmpdir()}/pgcloned-preflight-`));
      expect(await whoSpeaks(settings)).toBe('cloner');
    },
    () => {},
  );

  await expect(readdir(directory)).rejects.toThrow('ENOENT');
});

test('a query that is cancelled ends on the server, and the session lives on', async () => {
  await throughTunnel(async (settings) => {
    await using session = await openSession(settings, { applicationName: 'tunnel-test', signal });
    const stop = new AbortController();
    const sleeping = session.query('SELECT pg_sleep(60)', [], stop.signal);
    stop.abort(new Error('enough'));

    await expect(sleeping).rejects.toThrow('enough');
    expect(await session.query('SELECT 1 AS one', [], signal)).toEqual([{ one: 1 }]);
  });
});

test('the loss of the SSH connection ends the sessions, and what connects later makes it anew', async () => {
  await throughTunnel(async (settings) => {
    await using session = await openSession(settings, { applicationName: 'tunnel-test', signal });

    await source.sshd.kill();
    expect(await session.lost).toMatchObject({ code: 'SOURCE_LOST' });
    await source.sshd.start();

    expect(await whoSpeaks(settings)).toBe('cloner');
  });
  // The server of a connection that was cut notices that by itself.
  await expect
    .poll(
      async () =>
        await source.primary.query(
          "SELECT FROM pg_stat_activity WHERE application_name = 'tunnel-test'",
        ),
    )
    .toEqual([]);
});

test('with ssh.host the database is where the SSH server sees it, and is called as others see it', async () => {
  const addresses = { host: 'localhost' };

  await throughTunnel(
    async (settings) => {
      expect(settings.host).toBe('127.0.0.1');
      // The password is looked up by the name in the configuration, and there is none for this one.
      await expect(whoSpeaks(settings)).rejects.toMatchObject({
        code: 'SOURCE_AUTHENTICATION_FAILED',
      });
    },
    addresses,
    { host: '127.0.0.1' },
  );
});

test('what a killed process has left is removed by the next one', async () => {
  let directory = '';
  await withCleanup(
    async (cleanup) => {
      // Its cleanup is forgotten, and with that it looks as after a kill.
      const forgetful: Cleanup = {
        always: (step) => {
          if (!step.what.startsWith('directory')) cleanup.always(step);
        },
        onFailure: cleanup.onFailure,
      };
      const settings = await reach(runOf(forgetful));
      directory = settings.tunnelDirectory ?? '';
    },
    () => {},
  );
  expect(await readdir(directory)).toEqual([`.s.PGSQL.${String(source.primary.port)}`]);

  await removeDeadTunnels(target);

  await expect(readdir(directory)).rejects.toThrow('ENOENT');
});

test.each([
  ['verify-full', { host: 'db2' }, { host: '127.0.0.1' }, /cannot hold between/],
  ['require', { host: 'db2' }, { host: '127.0.0.1' }, /cannot hold between/],
  ['verify-ca', {}, { insecure: true }, /needs an SSH host key that is checked/],
] as const)(
  'sslmode %s is refused where the tunnel cannot hold it',
  async (sslmode, more, ssh, words) => {
    const sslRootCertFile = source.sshd.privateKeyFile;

    await expect(
      throughTunnel(async () => {}, { sslmode, sslRootCertFile, ...more }, ssh),
    ).rejects.toMatchObject({
      code: 'CONFIGURATION_INVALID',
      message: expect.stringMatching(words),
    });
  },
);

test('within the host of the database any sslmode can be asked for: SSH encrypts and proves', async () => {
  const sslRootCertFile = source.sshd.privateKeyFile;

  await throughTunnel(
    async (settings) => {
      expect(await whoSpeaks(settings)).toBe('cloner');
    },
    { sslmode: 'verify-full', sslRootCertFile },
  );
});
