/** A session must not end by a timeout, and when it does end, its owner must know at once. */
import { readFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import type { CloneError } from '@pgcloned/contract';
import {
  findPostgres,
  freePort,
  installedMajors,
  type PostgresServer,
  startPrimary,
} from '@pgcloned/testbed';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { openSession, probeReplication } from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const applicationName = 'pgcloned_test';

let server: PostgresServer;
beforeAll(async () => {
  server = await startPrimary();
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

test('timeouts of the role do not end a session or its queries', async () => {
  await server.query('CREATE ROLE hasty LOGIN');
  for (const setting of ['idle_session_timeout', 'statement_timeout', 'lock_timeout']) {
    // Until they are switched off, which takes a query, they are in force.
    await server.query(`ALTER ROLE hasty SET ${setting} = '1s'`);
  }

  await using session = await openSession(connectionTo(server, { user: 'hasty' }), {
    applicationName,
    signal,
  });
  await session.query('SELECT pg_sleep(1.2)', [], signal);
  await server.query('SELECT pg_sleep(1.2)');

  expect(await session.query('SELECT 1 AS one', [], signal)).toEqual([{ one: 1 }]);
});

test('the server gives a silent session up within seconds, and sends bytes as they are', async () => {
  await using session = await openSession(connectionTo(server), { applicationName, signal });

  const settings = await session.query(
    `SELECT name, setting FROM pg_settings WHERE name LIKE 'tcp\\_%' OR name = 'client_encoding'
      ORDER BY name`,
    [],
    signal,
  );

  expect(settings).toEqual([
    { name: 'client_encoding', setting: 'SQL_ASCII' },
    { name: 'tcp_keepalives_count', setting: '3' },
    { name: 'tcp_keepalives_idle', setting: '10' },
    { name: 'tcp_keepalives_interval', setting: '5' },
    { name: 'tcp_user_timeout', setting: '25000' },
  ]);
});

test('functions that the owner of a database puts before those of the server are never called', async () => {
  await server.query('CREATE ROLE tenant LOGIN');
  await server.query('CREATE DATABASE tenancy OWNER tenant');
  const asTenant = connectionTo(server, { user: 'tenant', database: 'tenancy' });
  {
    await using tenant = await openSession(asTenant, { applicationName, signal });
    for (const statement of [
      'CREATE SCHEMA trap',
      'CREATE TABLE trap.caught (by_superuser boolean)',
      ...['pg_backend_pid()', 'current_setting(text)', 'set_config(text, text, boolean)'].map(
        (called) => `CREATE FUNCTION trap.${called} RETURNS int LANGUAGE sql AS
          $$ INSERT INTO trap.caught VALUES (true); SELECT 1 $$`,
      ),
      'ALTER DATABASE tenancy SET search_path = trap, pg_catalog',
    ])
      await tenant.query(statement, [], signal);
  }

  const asSuperuser = connectionTo(server, { database: 'tenancy' });
  await using session = await openSession(asSuperuser, { applicationName, signal });

  expect(await session.query('SELECT * FROM trap.caught', [], signal)).toEqual([]);
});

test('a session knows its backend and the address that the server sees', async () => {
  await using byTcp = await openSession(connectionTo(server), { applicationName, signal });
  await using bySocket = await openSession(connectionTo(server, { host: server.socketDirectory }), {
    applicationName,
    signal,
  });

  expect(byTcp.localAddress).toBe('127.0.0.1');
  expect(bySocket.localAddress).toBeNull();
  const rows = await server.query(
    `SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid`,
    [applicationName],
  );
  expect(rows.map(({ pid }) => pid)).toEqual(
    [byTcp.backendPid, bySocket.backendPid].toSorted((a, b) => a - b),
  );
});

test('a session that an administrator ends says so at once, and its next query, too', async () => {
  await using session = await openSession(connectionTo(server), { applicationName, signal });

  await server.query('SELECT pg_terminate_backend($1)', [session.backendPid]);

  expect(await session.lost).toMatchObject({
    code: 'SOURCE_LOST',
    facts: { applicationName, sqlState: '57P01' },
  });
  await expect(session.query('SELECT 1', [], signal)).rejects.toMatchObject({
    code: 'SOURCE_LOST',
  });
});

test('a query that runs while the server is killed fails as lost', async () => {
  await using server = await startPrimary();
  await using session = await openSession(connectionTo(server), { applicationName, signal });
  const query = session.query('SELECT pg_sleep(60)', [], signal);
  const failing = expect(query).rejects.toMatchObject({ code: 'SOURCE_LOST' });

  await server.stop('immediate');

  await failing;
  expect((await session.lost).code).toBe('SOURCE_LOST');
});

describe('a query that is not answered', () => {
  /** Time passes by hand, and only for timers: what the server does takes as long as it takes. */
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval'] });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  /** Lets ten seconds pass, and waits until the look at the server that is due then has ended. */
  async function tenSeconds(relay: Relay): Promise<void> {
    const endedBefore = relay.ended();
    vi.advanceTimersByTime(10_000);
    while (relay.ended() === endedBefore) await setImmediate();
    // Our end of the connection closes some turns later.
    for (let turn = 0; turn < 100; turn += 1) await setImmediate();
  }

  const open = async ({ port }: Relay) =>
    await openSession(connectionTo({ host: '127.0.0.1', port }), { applicationName, signal });

  test('is waited for as long as its backend works on it', async () => {
    await using relay = await startRelay();
    await using session = await open(relay);
    const holder = await openSession(connectionTo(server), { applicationName: 'holder', signal });
    await holder.query('SELECT pg_advisory_lock(1)', [], signal);
    const waiting = session.query('SELECT pg_advisory_lock(1)::text AS "lock"', [], signal);

    await setImmediate();
    for (let look = 0; look < 6; look += 1) await tenSeconds(relay);
    await holder[Symbol.asyncDispose]();

    expect(await waiting).toEqual([{ lock: '' }]);
  });

  test('is waited for although the server lets nobody in any more', async () => {
    await server.query('CREATE ROLE barred LOGIN');
    await using relay = await startRelay();
    const settings = connectionTo({ host: '127.0.0.1', port: relay.port }, { user: 'barred' });
    await using session = await openSession(settings, { applicationName, signal });
    const holder = await openSession(connectionTo(server), { applicationName: 'holder', signal });
    await holder.query('SELECT pg_advisory_lock(2)', [], signal);
    const waiting = session.query('SELECT pg_advisory_lock(2)::text AS "lock"', [], signal);
    await server.query('ALTER ROLE barred NOLOGIN');

    await setImmediate();
    for (let look = 0; look < 3; look += 1) await tenSeconds(relay);
    await holder[Symbol.asyncDispose]();

    expect(await waiting).toEqual([{ lock: '' }]);
  });

  test('over a link that swallows everything ends the session after 25 s', async () => {
    await using relay = await startRelay();
    await using session = await open(relay);
    relay.freeze();
    const failing = expect(session.query('SELECT 1', [], signal)).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      facts: { reason: 'the server did not answer' },
    });
    await setImmediate();
    vi.advanceTimersByTime(24_000);
    expect(relay.open()).toBeGreaterThan(0);
    vi.advanceTimersByTime(1_000);

    await failing;
    expect((await session.lost).code).toBe('SOURCE_LOST');
  });

  test('ends the session at once when the server has ended it without our hearing of it', async () => {
    await using relay = await startRelay();
    await using session = await open(relay);
    relay.freeze();
    relay.serveNewOnes();
    const failing = expect(session.query('SELECT 1', [], signal)).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      facts: { reason: 'the server has ended the session' },
    });
    await server.query('SELECT pg_terminate_backend($1, 10000)', [session.backendPid]);
    await tenSeconds(relay);

    await failing;
  });

  test('ends the session when its backend does not even begin', async () => {
    await using relay = await startRelay();
    await using session = await open(relay);
    process.kill(session.backendPid, 'SIGSTOP');
    try {
      const failing = expect(session.query('SELECT 1', [], signal)).rejects.toMatchObject({
        code: 'SOURCE_LOST',
        facts: { reason: 'the server did not answer' },
      });
      await setImmediate();
      await tenSeconds(relay);
      await tenSeconds(relay);
      vi.advanceTimersByTime(5_000);

      await failing;
    } finally {
      process.kill(session.backendPid, 'SIGCONT');
    }
  });
});

test('an error of one query leaves the session to the next', async () => {
  await using session = await openSession(connectionTo(server), { applicationName, signal });

  await expect(session.query('SELECT 1/0', [], signal)).rejects.toThrow('division by zero');

  expect(await session.query('SELECT 1 AS one', [], signal)).toEqual([{ one: 1 }]);
});

test('queries that are asked at once are answered in the order of the calls', async () => {
  await using session = await openSession(connectionTo(server), { applicationName, signal });
  const answered: number[] = [];

  await Promise.all(
    [1, 2, 3, 4].map(async (number) => {
      await session.query('SELECT $1::int', [number], signal);
      answered.push(number);
    }),
  );

  expect(answered).toEqual([1, 2, 3, 4]);
});

test('aborting a query ends it on the server and leaves the session alive', async () => {
  await using session = await openSession(connectionTo(server), { applicationName, signal });
  const controller = new AbortController();
  const query = session.query('SELECT pg_sleep(60)', [], controller.signal);
  const failing = expect(query).rejects.toThrow('the user cancelled');
  await expect
    .poll(
      async () =>
        await server.query(`SELECT FROM pg_stat_activity WHERE state = 'active' AND pid = $1`, [
          session.backendPid,
        ]),
    )
    .toHaveLength(1);

  controller.abort(new Error('the user cancelled'));

  await failing;
  expect(await session.query('SELECT 1 AS one', [], signal)).toEqual([{ one: 1 }]);
});

test('a query that is aborted before the server has begun with it ends there all the same', async () => {
  await using session = await openSession(connectionTo(server), { applicationName, signal });
  const status = async () => await readFile(`/proc/${String(session.backendPid)}/status`, 'utf8');
  const controller = new AbortController();
  process.kill(session.backendPid, 'SIGSTOP');
  try {
    await expect.poll(status).toMatch(/^State:\tT/m);
    const query = session.query('SELECT pg_sleep(60)', [], controller.signal);
    const failing = expect(query).rejects.toThrow('the user cancelled');
    await setImmediate();

    controller.abort(new Error('the user cancelled'));
    // The request (SIGINT, the second bit) has come and waits with the query: the backend looks at it first, and is idle.
    await expect.poll(status).toMatch(/^ShdPnd:\t.*[2367abef]$/m);
    process.kill(session.backendPid, 'SIGCONT');

    await failing;
  } finally {
    process.kill(session.backendPid, 'SIGCONT');
  }
  expect(await session.query('SELECT 1 AS one', [], signal)).toEqual([{ one: 1 }]);
});

test('a query that is aborted before its turn does not wait for the one before it', async () => {
  await using session = await openSession(connectionTo(server), { applicationName, signal });
  const first = new AbortController();
  const slow = session.query('SELECT pg_sleep(60)', [], first.signal);
  const ended = expect(slow).rejects.toThrow('the first as well');
  const second = new AbortController();
  const waiting = session.query('SELECT 1', [], second.signal);

  second.abort(new Error('the second is given up'));

  await expect(waiting).rejects.toThrow('the second is given up');
  first.abort(new Error('the first as well'));
  await ended;
  expect(await session.query('SELECT 1 AS one', [], signal)).toEqual([{ one: 1 }]);
});

test('a session that is closed has left the server when closing settles', async () => {
  const session = await openSession(connectionTo(server), { applicationName, signal });

  await session[Symbol.asyncDispose]();

  expect(
    await server.query('SELECT FROM pg_stat_activity WHERE pid = $1', [session.backendPid]),
  ).toEqual([]);
  await expect(session.query('SELECT 1', [], signal)).rejects.toThrow('the session is closed');
});

test('a session that is lost can still be closed', async () => {
  await using server = await startPrimary();
  const session = await openSession(connectionTo(server), { applicationName, signal });
  await server.stop('immediate');
  await session.lost;

  await session[Symbol.asyncDispose]();
});

test('a wrong password and none at all are refusals that name the file to put it in', async () => {
  await using server = await startPrimary({ hba: ['host all all 127.0.0.1/32 scram-sha-256'] });
  await server.query("CREATE ROLE cloner LOGIN PASSWORD 'right'");
  const open = (password: string | null) =>
    openSession(
      connectionTo(server, {
        user: 'cloner',
        password,
        passFileRefused: '/home/x/.pgpass has group or world access',
      }),
      { applicationName, signal },
    );

  await using session = await open('right');
  expect(session.versionNum).toBeGreaterThan(150_000);
  for (const password of ['wrong', null]) {
    await expect(open(password)).rejects.toMatchObject({
      code: 'SOURCE_AUTHENTICATION_FAILED',
      hint: expect.stringMatching(/passFile.*\/home\/x\/\.pgpass has group or world access/),
    });
  }
});

test('a missing line of pg_hba.conf is named as it has to be added', async () => {
  await using server = await startPrimary({ hba: ['host all postgres 127.0.0.1/32 trust'] });
  await server.query('CREATE ROLE cloner LOGIN REPLICATION');

  await expect(
    openSession(connectionTo(server, { user: 'cloner' }), { applicationName, signal }),
  ).rejects.toMatchObject({
    code: 'SOURCE_AUTHENTICATION_FAILED',
    hint: expect.stringContaining('host postgres cloner 127.0.0.1/32 scram-sha-256'),
  });
  await expect(
    probeReplication(connectionTo(server), { applicationName, signal }),
  ).rejects.toMatchObject({
    code: 'SOURCE_RIGHTS_MISSING',
    hint: expect.stringContaining('host replication postgres 127.0.0.1/32 scram-sha-256'),
  });
});

test('a role without the attribute may not replicate, and the remedy names it', async () => {
  await server.query('CREATE ROLE "Clo ner" LOGIN');

  await expect(
    probeReplication(connectionTo(server, { user: 'Clo ner' }), { applicationName, signal }),
  ).rejects.toMatchObject({
    code: 'SOURCE_RIGHTS_MISSING',
    hint: 'Run on the source: ALTER ROLE "Clo ner" REPLICATION;',
  });
});

test.each(installedMajors())(
  'a replication connection to PostgreSQL %i tells the identity of the cluster',
  async (major) => {
    await using primary = await startPrimary({ binDirectory: findPostgres(major) });
    const [row] = await primary.query<{ id: string }>(
      'SELECT system_identifier::text AS id FROM pg_control_system()',
    );

    const identity = await probeReplication(connectionTo(primary), { applicationName, signal });

    expect(identity).toEqual({ systemIdentifier: row?.id, timeline: 1 });
    expect(await primary.query('SELECT FROM pg_stat_replication')).toEqual([]);
  },
);

test('a database that does not exist, a server that is down and a missing socket are told apart', async () => {
  const codeOf = async (more: Parameters<typeof connectionTo>[1]) =>
    await openSession(connectionTo(server, more), { applicationName, signal }).then(
      () => 'opened',
      (error: unknown) => (error as CloneError).code,
    );

  expect(await codeOf({ database: 'nowhere' })).toBe('CONFIGURATION_INVALID');
  expect(await codeOf({ port: await freePort() })).toBe('SOURCE_UNREACHABLE');
  expect(await codeOf({ host: join(server.socketDirectory, 'none') })).toBe('SOURCE_UNREACHABLE');
  expect(await codeOf({ host: 'no-such-host.invalid' })).toBe('SOURCE_UNREACHABLE');
});

test('an aborted connection attempt leaves no socket behind', async () => {
  const closed = Promise.withResolvers<void>();
  const controller = new AbortController();
  // Takes connections and never says a word.
  await using mute = createServer((socket) => {
    socket.on('close', () => closed.resolve());
    socket.on('error', () => {});
    socket.once('data', () => controller.abort(new Error('the user cancelled')));
  });
  const port = await freePort();
  await new Promise<void>((resolve) => mute.listen(port, '127.0.0.1', resolve));

  await expect(
    openSession(connectionTo({ host: '127.0.0.1', port }), {
      applicationName,
      signal: controller.signal,
    }),
  ).rejects.toThrow('the user cancelled');

  await closed.promise;
});

test('a session over a pooler is refused', async () => {
  // What any pooler does: it announces a key of its own in place of the backend's.
  const port = await freePort();
  await using pooler = createServer((client) => {
    {
      const upstream = connect(server.port, '127.0.0.1');
      client.pipe(upstream);
      upstream.on('data', (chunk: Buffer) => {
        const at = chunk.indexOf(Buffer.from([0x4b, 0, 0, 0, 12]));
        if (at >= 0) chunk.writeInt32BE(99, at + 5);
        client.write(chunk);
      });
      upstream.on('close', () => client.destroy());
      client.on('close', () => upstream.destroy());
      for (const socket of [client, upstream]) socket.on('error', () => {});
    }
  });
  await new Promise<void>((resolve) => pooler.listen(port, '127.0.0.1', resolve));

  await expect(
    openSession(connectionTo({ host: '127.0.0.1', port }), { applicationName, signal }),
  ).rejects.toMatchObject({
    code: 'SOURCE_SETTINGS_UNSUITABLE',
    message: 'a connection pooler stands before the source',
  });
});

test('no free connection is a reason to wait and not a bug', async () => {
  await using server = await startPrimary({
    settings: { max_connections: '4', superuser_reserved_connections: '3', max_wal_senders: '0' },
  });
  await server.query('CREATE ROLE cloner LOGIN REPLICATION');
  const settings = connectionTo(server, { user: 'cloner' });
  await using _ = await openSession(settings, { applicationName, signal });

  await expect(openSession(settings, { applicationName, signal })).rejects.toMatchObject({
    code: 'SOURCE_UNREACHABLE',
    message: expect.stringContaining('has no free connection'),
  });
  await expect(probeReplication(settings, { applicationName, signal })).rejects.toMatchObject({
    code: 'SOURCE_NO_WAL_SENDER',
  });
});

interface Relay extends AsyncDisposable {
  readonly port: number;
  /** How many connections have come to their end. */
  readonly ended: () => number;
  readonly open: () => number;
  /** Nothing comes through any more, on no connection; nothing is closed either. */
  readonly freeze: () => void;
  readonly serveNewOnes: () => void;
}

/** Stands before the server like a link. */
async function startRelay(): Promise<Relay> {
  const port = await freePort();
  const sockets = new Set<Socket>();
  let ended = 0;
  let isFrozen = false;
  const relay = createServer((client) => {
    sockets.add(client);
    client.on('error', () => {});
    client.on('close', () => {
      sockets.delete(client);
      ended += 1;
    });
    if (isFrozen) return;
    const upstream = connect(server.port, '127.0.0.1');
    sockets.add(upstream);
    upstream.on('error', () => {});
    upstream.on('close', () => {
      sockets.delete(upstream);
      client.destroy();
    });
    client.on('close', () => upstream.destroy());
    client.pipe(upstream);
    upstream.pipe(client);
  });
  await new Promise<void>((resolve) => relay.listen(port, '127.0.0.1', resolve));
  return {
    port,
    ended: () => ended,
    open: () => sockets.size,
    freeze: () => {
      isFrozen = true;
      for (const socket of sockets) {
        socket.removeAllListeners('close');
        socket.unpipe();
        socket.pause();
      }
    },
    serveNewOnes: () => {
      isFrozen = false;
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await relay[Symbol.asyncDispose]();
    },
  };
}
