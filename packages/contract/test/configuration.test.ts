import { expect, test } from 'vitest';
import {
  Configuration,
  formatServer,
  LocalSource,
  localSource,
  SourceConfiguration,
  serversOf,
} from '../src/index.ts';

const brokenPlaces = (configuration: unknown) =>
  (Configuration.safeParse(configuration).error?.issues ?? []).map(({ path }) => path.join('.'));

test('nothing has to be configured', () => {
  expect(Configuration.parse({})).toEqual({
    host: null,
    stateDirectory: null,
    redis: 'embedded',
    api: { listen: '127.0.0.1:7432', tls: null, tokens: [] },
    worker: {
      concurrency: 2,
      dataRoots: null,
      postgresBin: '/usr/lib/postgresql/{major}/bin',
      start: { method: 'pg_ctl' },
      allowedSettings: [],
      stallSeconds: 60,
      noSpaceSeconds: 600,
      leaseSeconds: 15,
      ports: '5500-5999',
    },
    sources: {},
  });
});

test('a source needs its host and nothing else', () => {
  const { sources } = Configuration.parse({ sources: { orders: { host: 'db1.internal' } } });

  expect(sources.orders).toMatchObject({
    host: 'db1.internal',
    port: 5432,
    sslmode: 'prefer',
    ssh: { host: null, user: 'postgres', port: 22, agent: false, insecure: false },
    rsyncd: { ports: '45000-45999', address: null },
    replication: { user: null, passFile: null },
  });
});

test.each([
  ['host', {}],
  ['host', { host: 'db1:5433' }],
  ['host', { host: 'db1,db2' }],
  ['hosts', { host: 'db1', hosts: ['db2'] }],
  ['hosts.0', { hosts: ['db1:0'] }],
  ['hosts.0', { hosts: ['::1'] }],
  ['hosts.0', { hosts: ['/run/postgresql'] }],
  ['hosts.1', { hosts: ['db1', 'db1:5432'] }],
  ['prefer', { host: 'db1', prefer: 'standby' }],
  ['maxLagBytes', { hosts: ['db1'], maxLagBytes: 0 }],
  ['ssh.host', { hosts: ['db1'], ssh: { host: 'db2' } }],
  ['rsyncd.address', { hosts: ['db1'], rsyncd: { address: '10.0.0.1' } }],
])('of the servers of a source a mistake is found at %s', (place, source) => {
  const { error } = SourceConfiguration.safeParse(source);

  expect(error?.issues.map(({ path }) => path.join('.'))).toEqual([place]);
});

test('several servers are named with or without a port', () => {
  const hosts = ['db1', 'db2:5433', '[::1]', '[fe80::1]:5434'];
  const source = SourceConfiguration.parse({ hosts, prefer: 'standby', port: 5000 });

  expect(serversOf(source).map(formatServer)).toEqual([
    'db1:5000',
    'db2:5433',
    '[::1]:5000',
    '[fe80::1]:5434',
  ]);
  expect(serversOf(SourceConfiguration.parse({ host: '::1' }))).toEqual([
    { host: '::1', port: 5432 },
  ]);
});

test('a local source needs its data directory and nothing else: the rest is found', () => {
  const { orders } = Configuration.parse({
    sources: { orders: { local: true, dataDirectory: '/srv/orders' } },
  }).sources;
  const source = localSource(LocalSource.parse(orders), { defaultUser: 'dba' });

  expect(source).toMatchObject({ local: true, dataDirectory: '/srv/orders', host: null });
  expect(source).toMatchObject({ user: 'dba', database: 'postgres', passFile: null });
  expect(serversOf(source)).toEqual([]);
});

test.each(['127.0.0.1:7432', '0.0.0.0:80', '[::1]:7432', 'localhost:7432'])(
  'the API can listen on %s',
  (listen) => {
    expect(brokenPlaces({ api: { listen } })).toEqual([]);
  },
);

test.each(['embedded', 'redis://h:6379/0', 'rediss://h:6379', 'unix:///run/redis.sock'])(
  'Redis can be %s',
  (redis) => {
    expect(brokenPlaces({ redis })).toEqual([]);
  },
);

test.each([
  ['', { sources: {}, source: {} }],
  ['host', { host: '-replica' }],
  ['stateDirectory', { stateDirectory: 'state' }],
  ['redis', { redis: 'localhost:6379' }],
  ['redis', { redis: 'embedded-not' }],
  ['api.listen', { api: { listen: '7432' } }],
  ['api.listen', { api: { listen: '::1:7432' } }],
  ['api.tokens.0.sha256', { api: { tokens: [{ name: 'a', sha256: 'secret', role: 'admin' }] } }],
  ['api.tokens.0.role', { api: { tokens: [{ name: 'a', sha256: '0'.repeat(64), role: 'root' }] } }],
  ['worker.concurrency', { worker: { concurrency: 0 } }],
  ['worker.dataRoots.0', { worker: { dataRoots: ['data'] } }],
  ['worker.postgresBin', { worker: { postgresBin: '/usr/bin' } }],
  ['worker.start', { worker: { start: { method: 'systemd' } } }],
  ['worker.start', { worker: { start: { command: 'systemctl start' } } }],
  ['sources.my source', { sources: { 'my source': { host: 'db1' } } }],
])('a mistake in %j is found there', (place, configuration) => {
  expect(brokenPlaces(configuration)).toEqual([place]);
});

test.each(['45000', '45999-45000', '80-90', '65000-65536', '45000-45999-46000'])(
  'the port range %s is refused',
  (ports) => {
    expect(brokenPlaces({ sources: { orders: { host: 'db1', rsyncd: { ports } } } })).not.toEqual(
      [],
    );
  },
);
