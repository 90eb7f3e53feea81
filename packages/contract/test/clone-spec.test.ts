import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  CloneError,
  CloneSpec,
  checksPages,
  RunSpec,
  refuseUnfitSource,
  refuseUnsupported,
} from '../src/index.ts';

const minimal = {
  source: { name: 'orders' },
  target: { host: 'replica-1', dataDirectory: '/var/lib/postgresql/15/main' },
};

const withTarget = (target: object) => ({ ...minimal, target: { ...minimal.target, ...target } });

/** Where the schema found something wrong. */
function brokenPlaces(spec: unknown): string[] {
  const { error } = CloneSpec.safeParse(spec);
  return (error?.issues ?? []).map(({ path }) => path.join('.'));
}

test('source, host and data directory are enough, and everything else has the published default', () => {
  expect(CloneSpec.parse(minimal)).toEqual({
    source: { name: 'orders' },
    target: {
      host: 'replica-1',
      dataDirectory: '/var/lib/postgresql/15/main',
      walDirectory: null,
      temporaryWalDirectory: null,
      tablespaces: {},
      ifExists: 'fail',
    },
    method: 'rsync',
    transfer: {
      workers: null,
      maxRate: null,
      compression: 'none',
      transport: 'rsyncd',
      checksum: false,
      fallback: 'fail',
    },
    wal: { retention: 'pin' },
    replica: {
      role: null,
      start: false,
      waitFor: 'files',
      hold: 3600,
      port: null,
      profile: null,
      settings: {},
      slot: null,
      clusterName: null,
      configuration: 'auto',
    },
    verification: { pages: null, manifest: false, boot: false },
    deadline: null,
    ttl: null,
    protected: false,
    labels: {},
    webhook: null,
  });
});

test('a spec as it was understood is understood the same way again', () => {
  const spec = CloneSpec.parse(withTarget({ tablespaces: { '/srv//fast/': '/srv/fast2/' } }));

  expect(spec.target.tablespaces).toEqual({ '/srv/fast': '/srv/fast2' });
  expect(CloneSpec.parse(structuredClone(spec))).toEqual(spec);
});

test.each([
  ['empty', ''],
  ['relative', 'var/lib/postgresql'],
  ['relative to a home', '~/data'],
  ['with a parent component', '/var/lib/../etc'],
  ['that ends with a parent component', '/var/lib/..'],
  ['with a dot component', '/var/./lib'],
  ['with a line break', '/var/lib\n/data'],
  ['with a control character of C1', '/var/lib/\u009bdata'],
  ['with a NUL', '/var/lib\0/data'],
  ['with a DEL', '/var/lib\u007f'],
  ['too long for the kernel', `/${'x'.repeat(4096)}`],
])('a path that is %s is refused wherever a path is asked for', (_, path) => {
  expect(brokenPlaces(withTarget({ dataDirectory: path }))).toContain('target.dataDirectory');
  expect(brokenPlaces(withTarget({ walDirectory: path }))).toContain('target.walDirectory');
  expect(brokenPlaces(withTarget({ temporaryWalDirectory: path }))).toContain(
    'target.temporaryWalDirectory',
  );
  expect(brokenPlaces(withTarget({ tablespaces: { '/srv/a': path } }))).not.toEqual([]);
  expect(brokenPlaces(withTarget({ tablespaces: { [path]: '/srv/a' } }))).not.toEqual([]);
});

test.each([
  ['/srv/my data', '/srv/my data'],
  ['/srv/größe', '/srv/größe'],
  ['/srv/..hidden/a..b/...', '/srv/..hidden/a..b/...'],
  ['//srv///data//', '/srv/data'],
  ['/', '/'],
])('the path %j is understood as %j', (path, understood) => {
  const spec = CloneSpec.parse(withTarget({ dataDirectory: path }));

  expect(spec.target.dataDirectory).toBe(understood);
});

test.each([
  ['', { ...minimal, bogus: 1 }],
  ['source', { ...minimal, source: { name: 'orders', host: 'db1' } }],
  ['target', withTarget({ dataDir: '/srv' })],
  ['transfer', { ...minimal, transfer: { worker: 4 } }],
  ['wal', { ...minimal, wal: { slot: 'x' } }],
  ['replica', { ...minimal, replica: { password: 'x' } }],
])('an unknown field in %j is refused, not ignored', (place, spec) => {
  const { error } = CloneSpec.safeParse(spec);

  const unknown = (error?.issues ?? []).filter(({ code }) => code === 'unrecognized_keys');
  expect(unknown.map(({ path }) => path.join('.'))).toEqual([place]);
});

test.each([
  ['transfer.workers', { transfer: { workers: 0 } }],
  ['transfer.workers', { transfer: { workers: 65 } }],
  ['transfer.workers', { transfer: { workers: 1.5 } }],
  ['transfer.maxRate', { transfer: { maxRate: 9_999 } }],
  ['transfer.compression', { transfer: { compression: 'gzip' } }],
  ['wal.retention', { wal: { retention: 'maybe' } }],
  ['replica.port', { replica: { port: 65_536 } }],
  ['replica.hold', { replica: { hold: -1 } }],
  ['replica.slot', { replica: { slot: "x'; DROP" } }],
  ['replica.clusterName', { replica: { clusterName: 'a\nb' } }],
  ['replica.settings.Work Mem', { replica: { settings: { 'Work Mem': '4MB' } } }],
  ['replica.settings.work_mem', { replica: { settings: { work_mem: "4MB'\ninclude 'x" } } }],
  ['replica.settings.work_mem', { replica: { settings: { work_mem: null } } }],
  ['deadline', { deadline: 'tomorrow' }],
  ['labels.owner', { labels: { owner: 'x'.repeat(257) } }],
  ['labels.owner', { labels: { owner: 'a\u009b31mred' } }],
  ['replica.settings.work_mem', { replica: { settings: { work_mem: '4MB\u0085' } } }],
])('a value of %s that breaks a rule is refused there', (place, part) => {
  expect(brokenPlaces({ ...minimal, ...part })).toEqual([place]);
});

test.each([
  [{ port: 5433, settings: { port: 5434 } }, 'replica.settings.port'],
  [{ settings: { port: 'abc' } }, 'replica.settings.port'],
  [{ settings: { port: true } }, 'replica.settings.port'],
  [{ settings: { port: 70_000 } }, 'replica.settings.port'],
  [{ clusterName: '' }, 'replica.clusterName'],
  [{ clusterName: 'réplica' }, 'replica.clusterName'],
])('a replica of %j is refused: it would be another than was asked for', (replica, place) => {
  expect(brokenPlaces({ ...minimal, replica })).toEqual([place]);
});

test('the port of the replica may stand among its settings', () => {
  expect(brokenPlaces({ ...minimal, replica: { settings: { port: '5433' } } })).toEqual([]);
});

test('pgcloned run takes a source by name or spelled out, and needs no host', () => {
  const target = { dataDirectory: '/srv/clone' };

  expect(RunSpec.parse({ source: { name: 'orders' }, target }).source).toEqual({ name: 'orders' });
  expect(RunSpec.parse({ source: { host: 'db1' }, target }).source).toMatchObject({
    host: 'db1',
    port: 5432,
    user: 'postgres',
    ssh: { user: 'postgres', port: 22, insecure: false },
    rsyncd: { ports: '45000-45999' },
  });
  expect(RunSpec.safeParse({ source: { host: 'db1', password: 'x' }, target }).success).toBe(false);
  const local = { local: true, dataDirectory: '/srv/orders' };
  expect(RunSpec.parse({ source: local, target }).source).toMatchObject(local);
});

test.each([
  ['replica.waitFor', { replica: { waitFor: 'writable' } }],
  ['replica.waitFor', { replica: { role: 'detached', waitFor: 'streaming' } }],
  ['replica.slot', { replica: { role: 'detached', slot: 'its_own' } }],
  [
    'replica.settings.max_logical_replication_workers',
    { replica: { role: 'detached', settings: { max_logical_replication_workers: 4 } } },
  ],
  ['webhook', { webhook: { url: 'https://example.org/' } }],
  ['transfer.fallback', { transfer: { fallback: 'copy' } }],
  ['transfer.maxRate', { method: 'reflink', transfer: { maxRate: 1_000_000 } }],
  ['transfer.compression', { method: 'reflink', transfer: { compression: 'zstd' } }],
  ['transfer.transport', { method: 'reflink', transfer: { transport: 'ssh' } }],
  ['transfer.checksum', { method: 'reflink', transfer: { checksum: true } }],
  [
    'target.ifExists',
    { method: 'reflink', target: { ...minimal.target, ifExists: 'resync' as const } },
  ],
])(
  'what is not built yet in %s, or not by this method, is refused by name, with what can be used in its place',
  (field, part) => {
    const spec = CloneSpec.parse({ ...minimal, ...part });

    let refusal: unknown;
    try {
      refuseUnsupported(spec);
    } catch (error) {
      refusal = error;
    }

    expect(refusal).toBeInstanceOf(CloneError);
    expect(refusal).toMatchObject({
      code: 'NOT_SUPPORTED',
      facts: { field },
      hint: expect.stringMatching(/^[A-Z].*\.$/),
    });
  },
);

test.each(['rsync', 'reflink'])('the defaults are supported, with method %s', (method) => {
  expect(() => refuseUnsupported(CloneSpec.parse({ ...minimal, method }))).not.toThrow();
});

test.each([
  ['rsync', true],
  ['reflink', false],
] as const)('a source does not fit method %s if local is %s', (method, local) => {
  expect(() => refuseUnfitSource({ method }, { local })).toThrow(
    expect.objectContaining({ code: 'NOT_SUPPORTED', facts: { method, local } }),
  );
  expect(() => refuseUnfitSource({ method }, { local: !local })).not.toThrow();
});

test('pages are checked unless they are shared, or if it is asked for', () => {
  expect(checksPages(CloneSpec.parse(minimal))).toBe(true);
  expect(checksPages(CloneSpec.parse({ ...minimal, method: 'reflink' }))).toBe(false);
  const asked = { ...minimal, method: 'reflink', verification: { pages: true } };
  expect(checksPages(CloneSpec.parse(asked))).toBe(true);
});

test('no input makes the schema throw anything but an answer', () => {
  fc.assert(
    fc.property(fc.anything(), fc.jsonValue(), (anything, json) => {
      expect(CloneSpec.safeParse(anything).success).toBe(false);
      expect(CloneSpec.safeParse(withTarget({ dataDirectory: json })).success).toBeTypeOf(
        'boolean',
      );
    }),
  );
});
