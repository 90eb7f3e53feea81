/** What `pgcloned run` makes of SPEC, options and environment; the clone itself is tested in apps/e2e. */
import { existsSync } from 'node:fs';
import { userInfo } from 'node:os';
import { EXIT_STATUS } from '@pgcloned/contract';
import { startSshd } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readSettings } from '../src/config.ts';
import { readRunRequest } from '../src/run-spec.ts';
import { makeWorkplace, type Workplace } from './pgcloned.ts';

let workplace: Workplace;
beforeAll(async () => {
  workplace = await makeWorkplace();
});
afterAll(async () => {
  await workplace[Symbol.asyncDispose]();
});

/** What the command would hand to the engine. */
async function requested({
  spec,
  places = [],
  options = {},
  env = {},
  configuration = 'host: here\n',
}: {
  readonly spec?: string;
  readonly places?: readonly string[];
  readonly options?: Readonly<Record<string, unknown>>;
  readonly env?: Readonly<Record<string, string>>;
  readonly configuration?: string;
}) {
  const environment = { HOME: workplace.path, ...env };
  const settings = await readSettings(
    environment,
    await workplace.file('pgcloned.yaml', configuration),
  );
  return await readRunRequest({
    file: spec === undefined ? undefined : await workplace.file('spec.yaml', spec),
    places,
    options,
    environment,
    settings,
  });
}

const TARGET = 'target: {dataDirectory: /srv/a}\n';

test('options alone are enough, and the rest has the defaults of the contract', async () => {
  const { spec, source, sourceName, password } = await requested({
    options: { host: 'db1', dataDirectory: '/srv/a', start: true, maxRate: '200MB' },
  });

  expect(sourceName).toBe('db1');
  expect(source).toMatchObject({ host: 'db1', port: 5432, user: 'postgres' });
  expect(spec.target).toMatchObject({ host: 'here', dataDirectory: '/srv/a', ifExists: 'fail' });
  expect(spec.replica.start).toBe(true);
  expect(spec.transfer.maxRate).toBe(200 * 1024 * 1024);
  expect(password).toBeNull();
});

test('a clone on this host needs two data directories and nothing else', async () => {
  const { spec, source, sourceName, password } = await requested({
    places: ['/srv/orders', '/srv/test'],
    env: { PGHOST: 'elsewhere', PGPORT: '1', PGUSER: 'somebody' },
  });

  expect(sourceName).toBe('/srv/orders');
  expect(source).toMatchObject({ local: true, dataDirectory: '/srv/orders', host: null });
  expect(source.user).toBe(userInfo().username);
  expect(spec).toMatchObject({ method: 'reflink', target: { dataDirectory: '/srv/test' } });
  expect(password).toBeNull();

  const more = await requested({
    places: ['/srv/orders', '/srv/test'],
    options: { user: 'dba', replicaPort: '5433' },
  });
  expect(more.source.user).toBe('dba');
  expect(more.spec.replica.port).toBe(5433);
});

test('several servers come from an option or the SPEC, and PGHOST is not one more', async () => {
  const env = { PGHOST: 'elsewhere' };
  const byOptions = await requested({
    options: { hosts: 'db1, db2:5433', prefer: 'standby', maxLag: '1GB', dataDirectory: '/srv/a' },
    env,
  });
  const bySpec = await requested({ spec: `source: {hosts: [db1]}\n${TARGET}`, env });

  expect(byOptions.sourceName).toBe('db1, db2:5433');
  expect(byOptions.source).toMatchObject({
    host: null,
    hosts: ['db1', 'db2:5433'],
    prefer: 'standby',
    maxLagBytes: 1024 ** 3,
  });
  expect(bySpec.source).toMatchObject({ host: null, hosts: ['db1'] });
});

test('an option overrides the SPEC, which overrides the PG variables', async () => {
  const { source } = await requested({
    spec: `source: {host: db2, port: 5002}\n${TARGET}`,
    options: { host: 'db1' },
    env: { PGHOST: 'db3', PGPORT: '5003', PGUSER: 'cloner', PGSSLMODE: 'require' },
  });

  expect(source).toMatchObject({ host: 'db1', port: 5002, user: 'cloner', sslmode: 'require' });
});

test('pairs are added to those of the SPEC', async () => {
  const { spec } = await requested({
    spec: 'source: {host: db}\ntarget: {dataDirectory: /srv/a, tablespaces: {/x: /y}}\n',
    options: { tablespace: ['/srv/fast=/srv/fast2', '/x=/z'], set: ['work_mem=64MB'] },
  });

  expect(spec.target.tablespaces).toEqual({ '/srv/fast': '/srv/fast2', '/x': '/z' });
  expect(spec.replica.settings).toEqual({ work_mem: '64MB' });
});

test('PGPASSWORD is handed on, but not for a source that has a file with passwords', async () => {
  const configuration =
    'host: here\nsources: {plain: {host: a}, filed: {host: b, passFile: pgpass}}\n';
  const env = { PGPASSWORD: 'secret', PGHOST: 'elsewhere', PGUSER: 'somebody' };

  const spelledOut = await requested({ spec: TARGET, env });
  const plain = await requested({ spec: TARGET, options: { source: 'plain' }, env, configuration });
  const filed = await requested({ spec: TARGET, options: { source: 'filed' }, env, configuration });

  expect(spelledOut).toMatchObject({ password: 'secret', source: { host: 'elsewhere' } });
  expect(plain).toMatchObject({ password: 'secret', source: { host: 'a', user: 'postgres' } });
  expect(filed).toMatchObject({
    password: null,
    source: { passFile: `${workplace.path}/pgpass` },
  });
});

test('PGPASSWORD has more weight than PGPASSFILE, as for psql', async () => {
  const both = await requested({
    spec: TARGET,
    env: { PGHOST: 'db', PGPASSWORD: 'secret', PGPASSFILE: '/srv/pass' },
  });
  const file = await requested({ spec: TARGET, env: { PGHOST: 'db', PGPASSFILE: '/srv/pass' } });

  expect(both).toMatchObject({ password: 'secret', source: { passFile: null } });
  expect(file).toMatchObject({ password: null, source: { passFile: '/srv/pass' } });
});

test('files are found relative to the SPEC, or to home with ~', async () => {
  const { source } = await requested({
    spec: `source: {host: db, passFile: pass, ssh: {privateKeyFile: ~/.ssh/clone}}\n${TARGET}`,
  });

  expect(source.passFile).toBe(`${workplace.path}/pass`);
  expect(source.ssh.privateKeyFile).toBe(`${workplace.path}/.ssh/clone`);
});

test('the agent is asked when there is one, unless the SPEC says no', async () => {
  const env = { SSH_AUTH_SOCK: '/run/agent' };

  const asked = await requested({ spec: `source: {host: db}\n${TARGET}`, env });
  const declined = await requested({
    spec: `source: {host: db, ssh: {agent: false}}\n${TARGET}`,
    env,
  });

  expect(asked.source.ssh.agent).toBe(true);
  expect(declined.source.ssh.agent).toBe(false);
});

test.each([
  ['no CLONE', { places: ['/srv/a'] }, 'REQUEST_INVALID', 'where /srv/a shall be cloned to'],
  [
    'ORIGIN and a host',
    { places: ['/srv/a', '/srv/b'], options: { host: 'db1' } },
    'REQUEST_INVALID',
    'option --host: source.host: unknown key',
  ],
  [
    'ORIGIN and method rsync',
    { places: ['/srv/a', '/srv/b'], options: { method: 'rsync' } },
    'NOT_SUPPORTED',
    'method rsync does not copy a source that is configured as local',
  ],
  ['no source', { spec: TARGET }, 'REQUEST_INVALID', 'no source is named'],
  [
    'a source that nobody has configured',
    { spec: TARGET, options: { source: 'orders' } },
    'SOURCE_UNKNOWN',
    'no source is called orders',
  ],
  [
    'an unknown field',
    { spec: `source: {host: db}\n${TARGET}wal:\n  retenshun: pin\n` },
    'REQUEST_INVALID',
    'spec.yaml:4: wal.retenshun: unknown key',
  ],
  [
    'a relative target',
    { options: { host: 'db', dataDirectory: 'a/b' } },
    'REQUEST_INVALID',
    'option --data-directory: target.dataDirectory: must be an absolute path',
  ],
  [
    'a target with ..',
    { options: { host: 'db', dataDirectory: '/srv/../etc' } },
    'REQUEST_INVALID',
    'must not contain . or .. components',
  ],
  [
    'a port that is no number',
    { spec: TARGET, env: { PGHOST: 'db', PGPORT: 'x' } },
    'REQUEST_INVALID',
    'environment variable PGPORT: source.port: expected number',
  ],
  [
    'a tablespace without its new place',
    { spec: TARGET, options: { host: 'db', tablespace: ['/srv/fast'] } },
    'REQUEST_INVALID',
    'option --tablespace: target.tablespaces./srv/fast: must be an absolute path',
  ],
  [
    'a rate that is no size',
    { spec: TARGET, options: { host: 'db', maxRate: '200 furlongs' } },
    'REQUEST_INVALID',
    'not a size: 200 furlongs',
  ],
  [
    'reflinks of another host',
    { spec: TARGET, options: { host: 'db', method: 'reflink' } },
    'NOT_SUPPORTED',
    'method reflink needs a source on the same host',
  ],
  [
    'a variable that leads psql elsewhere',
    { spec: TARGET, options: { host: 'db' }, env: { PGSERVICE: 'prod' } },
    'NOT_SUPPORTED',
    'PGSERVICE',
  ],
  [
    'another host than this one',
    { spec: 'source: {host: db}\ntarget: {host: there, dataDirectory: /srv/a}\n' },
    'REQUEST_INVALID',
    'target.host is there, but this is here',
  ],
  [
    'a socket directory without a name for SSH',
    { spec: TARGET, options: { host: '/run/postgresql' } },
    'REQUEST_INVALID',
    'source.host is the socket directory /run/postgresql',
  ],
])('%s is refused by what was written, with a remedy', async (_what, given, code, message) => {
  await expect(requested(given)).rejects.toMatchObject({
    code,
    message: expect.stringContaining(message) as string,
    hint: expect.any(String) as string,
  });
});

test('a SPEC that cannot be read ends the command with status 2', async () => {
  const missing = await workplace.pgcloned(['run', '-f', '/nonexistent']);
  const input = await workplace.pgcloned(['run', '-f', '-'], { input: '{"source": 1}' });

  expect(missing.status).toBe(EXIT_STATUS.usage);
  expect(missing.stderr).toContain('cannot read /nonexistent');
  expect(input.status).toBe(EXIT_STATUS.usage);
  expect(input.stderr).toContain('standard input:1: source: expected object');
  expect(input.stderr).toContain('standard input: target: is missing');
});

test('a source that is down ends the command with status 6 and changes nothing', async () => {
  await using sshd = await startSshd();
  const target = `${workplace.path}/clone`;

  const { status, stderr } = await workplace.pgcloned(
    [
      ...['--json', 'run', '--progress', 'none', '-D', target],
      ...['--host', sshd.host, '--port', '1', '--ssh-port', String(sshd.port)],
      ...['--ssh-user', sshd.user, '--ssh-key', sshd.privateKeyFile],
      ...['--known-hosts', sshd.knownHostsFile],
    ],
    { env: { PGPASSWORD: 'hunter2' } },
  );

  expect(status).toBe(EXIT_STATUS.unavailable);
  expect(JSON.parse(stderr)).toMatchObject({
    error: { code: 'SOURCE_UNREACHABLE', phase: 'preflight', retryable: true },
  });
  expect(stderr).not.toContain('hunter2');
  expect(existsSync(target)).toBe(false);
});
