/** Which of several servers is copied: real ones, as they are after a failover, a stop or under a lag. */
import { appendFile } from 'node:fs/promises';
import { CloneError, type ErrorCode, type Remedy, SourceConfiguration } from '@pgcloned/contract';
import type { ServerState } from '@pgcloned/postgres';
import {
  type Source,
  type StandbySource,
  startSource,
  startStandby,
  startStandbyOf,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Candidate, chooseServer, pickServer } from '../src/pick-server.ts';
import type { ClonePlan } from '../src/plan.ts';

const { signal } = new AbortController();

async function pick(
  source: Source,
  servers: readonly (number | string)[],
  how: { readonly prefer?: string; readonly maxLagBytes?: number; readonly ssh?: object } = {},
) {
  const { host: _, ...configuration } = source.configuration;
  const parsed = SourceConfiguration.parse({
    ...configuration,
    ...how,
    hosts: servers.map((one) => (typeof one === 'number' ? `127.0.0.1:${String(one)}` : one)),
  });
  const host = { defaultSshKeyFiles: [], defaultKnownHostsFiles: [], sshAgentSocket: null };
  const plan = { source: parsed, password: null, host } as unknown as ClonePlan;
  const run = { plan, name: 'pgcloned_pick', signal };
  return await pickServer(run, { dataDirectory: '/nowhere', former: null });
}

describe('of real servers', () => {
  const owned = new AsyncDisposableStack();
  let source: Source;
  let other: StandbySource;
  let primary = 0;
  let standby = 0;

  beforeAll(async () => {
    source = owned.use(await startSource());
    other = owned.use(await startStandbyOf(source));
    primary = source.primary.port;
    standby = other.standby.port;
    await waitForReplay(source.primary, other.standby);
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  test('the primary is picked wherever it stands in the list, unless a standby is preferred', async () => {
    expect(await pick(source, [standby, primary])).toEqual({
      server: { host: '127.0.0.1', port: primary },
      role: 'primary',
      isFallback: false,
      passedOver: { [`127.0.0.1:${String(standby)}`]: 'it is a standby' },
    });
    expect(await pick(source, [primary, standby], { prefer: 'standby' })).toEqual({
      server: { host: '127.0.0.1', port: standby },
      role: 'standby',
      isFallback: false,
      passedOver: { [`127.0.0.1:${String(primary)}`]: 'it is the primary' },
    });
  });

  test('all are asked through tunnels, if their ports are closed', async () => {
    const ssh = { ...source.configuration.ssh, tunnelDatabase: true };

    const picked = await pick(source, [primary, standby], { prefer: 'standby', ssh });

    expect(picked).toMatchObject({ server: { port: standby }, role: 'standby' });
  });

  test('a standby alone knows by its stream how far it is behind', async () => {
    expect(await pick(source, [standby], { prefer: 'standby' })).toMatchObject({
      role: 'standby',
    });
  });

  test('a standby that is too far behind is passed over, and the primary is the fallback', async () => {
    await other.standby.query('SELECT pg_wal_replay_pause()');
    await source.primary.query("SELECT pg_logical_emit_message(false, '', repeat('x', 2000000))");
    const how = { prefer: 'standby', maxLagBytes: 1_000_000 };

    const picked = await pick(source, [standby, primary], how);

    expect(picked).toMatchObject({ role: 'primary', isFallback: true });
    expect(Object.values(picked.passedOver)).toEqual([
      expect.stringMatching(/^it is .* behind, and maxLagBytes is 1000000$/),
    ]);
    await other.standby.query('SELECT pg_wal_replay_resume()');
    await waitForReplay(source.primary, other.standby);
    expect(await pick(source, [standby, primary], how)).toMatchObject({ role: 'standby' });
  });

  test('a server whose host is closed is passed over, since no file would come from it', async () => {
    const { password, passFile, configuration } = source;
    await using elsewhere = await startStandby(source.primary, {
      // Where no sshd listens.
      settings: { listen_addresses: '127.0.0.2' },
    });
    const closed = `127.0.0.2:${String(elsewhere.port)}`;
    await appendFile(passFile, `127.0.0.2:${String(elsewhere.port)}:*:cloner:${password}\n`);
    await waitForReplay(source.primary, elsewhere);
    const hosts = [closed, `127.0.0.1:${String(standby)}`];

    const picked = await pick(source, hosts, { prefer: 'standby' });

    expect(picked).toMatchObject({
      server: { port: standby },
      passedOver: {
        [closed]: `cannot connect to 127.0.0.2 port ${String(configuration.ssh.port)}`,
      },
    });
    await expect(pick(source, [closed], { prefer: 'standby' })).rejects.toMatchObject({
      code: 'SSH_UNREACHABLE',
      message: expect.stringContaining(`${closed}: cannot connect`),
    });
  });

  test('servers of another cluster are refused by name', async () => {
    await using stranger = await startSource({ ownIdentity: true });
    const { port } = stranger.primary;
    await appendFile(source.passFile, `127.0.0.1:${String(port)}:*:cloner:${stranger.password}\n`);

    await expect(pick(source, [primary, port])).rejects.toMatchObject({
      code: 'SOURCE_MISMATCH',
      message: expect.stringContaining(`127.0.0.1:${String(port)} is of cluster`),
    });
  });

  test('what is down is passed over, and if none is left each is named with its reason', async () => {
    await source.primary.stop();
    const where = `127.0.0.1:${String(primary)}`;

    const refusal = pick(source, [primary, standby]);

    await expect(refusal).rejects.toMatchObject({
      code: 'SOURCE_UNREACHABLE',
      message: expect.stringMatching(
        /^none of the hosts can be copied as primary: .* there is no answer .*; .*: it is a standby$/,
      ),
      facts: { [where]: expect.stringContaining('there is no answer') },
    });
    await expect(pick(source, [primary, standby], { prefer: 'standby' })).rejects.toMatchObject({
      message: expect.stringContaining('nobody knows how far it is behind'),
    });
  });

  test('two primaries after a failover are refused, since nobody knows which of them counts', async () => {
    await other.standby.query('SELECT pg_promote()');
    expect(await pick(source, [primary, standby])).toMatchObject({
      server: { port: standby },
      role: 'primary',
    });
    await source.primary.start();

    await expect(pick(source, [primary, standby])).rejects.toMatchObject({
      code: 'SOURCE_MISMATCH',
      message: expect.stringContaining(`127.0.0.1:${String(standby)} on timeline 2`),
    });
  });
});

describe('of what the servers say', () => {
  const state = (changes: Partial<ServerState>): ServerState => ({
    systemIdentifier: '7',
    inRecovery: true,
    timeline: 1,
    lsn: '0/3000000',
    upstreamLsn: null,
    ...changes,
  });
  const candidate = (host: string, answer: Candidate['answer']): Candidate => ({
    server: { host, port: 5432 },
    answer,
  });
  const three = [
    candidate('db1', state({ inRecovery: false })),
    candidate('db2', state({})),
    candidate('db3', state({})),
  ];
  const how = { prefer: 'standby', maxLagBytes: 1000, former: null } as const;

  test('the first standby is picked, but the one that was copied before rather', () => {
    expect(chooseServer(three, how).server.host).toBe('db2');
    expect(
      chooseServer(three, { ...how, former: { name: 'db3:5432', timeline: null } }),
    ).toMatchObject({
      server: { host: 'db3' },
      passedOver: { 'db1:5432': 'it is the primary', 'db2:5432': 'another one comes first' },
    });
    expect(
      chooseServer(three, { ...how, former: { name: 'db9:5432', timeline: null } }).server.host,
    ).toBe('db2');
  });

  test('the primary that stood in for a standby is kept as long as what it has sent is worth something', () => {
    const copiedOn = (timeline: number | null) =>
      chooseServer(three, { ...how, former: { name: 'db1:5432', timeline } });

    expect(copiedOn(1)).toMatchObject({ role: 'primary', isFallback: false });
    // It was a standby then, and was promoted.
    expect(copiedOn(2).server.host).toBe('db2');
    expect(copiedOn(null).server.host).toBe('db2');
  });

  test('a primary that was left behind by a promotion is never picked, whoever else can be reached', () => {
    const leftBehind = [
      candidate('db1', state({ inRecovery: false, timeline: 1 })),
      candidate('db2', state({ timeline: 2, upstreamLsn: '0/3000000' })),
    ];
    const where = 'on timeline 1, and the newest is 2';

    expect(chooseServer(leftBehind, how)).toMatchObject({
      server: { host: 'db2' },
      role: 'standby',
      passedOver: { 'db1:5432': `it is a primary that a promotion has left behind, ${where}` },
    });
    expect(() => chooseServer(leftBehind, { ...how, prefer: 'primary' })).toThrow(
      expect.objectContaining({
        code: 'SOURCE_UNREACHABLE',
        message: expect.stringContaining('a promotion has left behind'),
      }),
    );
  });

  test('of standbys without a primary those are passed over that have not followed to the newest timeline', () => {
    const upstreamLsn = '0/3000000';
    const standbys = [
      candidate('db2', state({ timeline: 1, upstreamLsn })),
      candidate('db3', state({ timeline: 2, upstreamLsn })),
    ];

    expect(chooseServer(standbys, how).server.host).toBe('db3');
  });

  test('a standby of another timeline than the primary is passed over', () => {
    const promoted = [
      candidate('db1', state({ inRecovery: false, timeline: 2 })),
      candidate('db2', state({ timeline: 1 })),
      candidate('db3', state({ timeline: 2 })),
    ];

    expect(chooseServer(promoted, how)).toMatchObject({
      server: { host: 'db3' },
      passedOver: { 'db2:5432': 'it is on timeline 1, and the primary on 2' },
    });
  });

  describe('a reason that all have in common keeps its code and its remedy', () => {
    const remedies: readonly Remedy[] = [{ kind: 'sql', on: 'source', where: null, text: 'x' }];
    const refusal = (code: ErrorCode) =>
      new CloneError(code, 'it is refused', { hint: 'Mend it.', remedies });
    const refused = (host: string) => candidate(host, refusal('SOURCE_AUTHENTICATION_FAILED'));
    const byPrimary = { ...how, prefer: 'primary' } as const;

    test('whether by SQL', () => {
      const error = { code: 'SOURCE_AUTHENTICATION_FAILED', hint: 'Mend it.', remedies };

      expect(() => chooseServer([refused('db1'), refused('db2')], how)).toThrow(
        expect.objectContaining(error),
      );
      expect(() => chooseServer([refused('db1'), candidate('db2', state({}))], how)).toThrow(
        expect.objectContaining({ code: 'SOURCE_UNREACHABLE', remedies: [] }),
      );
    });

    test('or by SSH, where the others are no primaries', () => {
      const primary = {
        ...candidate('db1', state({ inRecovery: false })),
        hostFailure: refusal('SSH_AUTHENTICATION_FAILED'),
      };

      expect(() => chooseServer([primary, candidate('db2', state({}))], byPrimary)).toThrow(
        expect.objectContaining({ code: 'SSH_AUTHENTICATION_FAILED', hint: 'Mend it.', remedies }),
      );
    });
  });
});
