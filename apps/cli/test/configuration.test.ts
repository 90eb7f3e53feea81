/** The configuration as the command reads it: `host list` is the cheapest command that needs it. */
import { runsAsRoot } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeWorkplace, type Workplace } from './pgcloned.ts';

let workplace: Workplace;
beforeAll(async () => {
  workplace = await makeWorkplace();
});
afterAll(async () => {
  await workplace[Symbol.asyncDispose]();
});

async function start(yaml: string, env: Readonly<Record<string, string>> = {}) {
  const file = await workplace.file('pgcloned.yaml', yaml);
  const outcome = await workplace.pgcloned(['--json', '--config', file, 'host', 'list'], { env });
  const { error } = JSON.parse(outcome.stderr) as {
    error: { code: string; message: string; hint: string; facts: Record<string, string> };
  };
  return { ...outcome, error, file };
}

test('an unknown key stops the start with file, line and key', async () => {
  const { status, error, file } = await start('worker:\n  concurrency: 2\n  concurency: 3\n');

  expect(status).toBe(2);
  expect(error.code).toBe('CONFIGURATION_INVALID');
  expect(error.message).toBe(`${file}:3: worker.concurency: unknown key`);
});

test('a value of the wrong type stops the start with file, line and key', async () => {
  const { error, file } = await start('api:\n  listen: 7432\n');

  expect(error.message).toBe(`${file}:2: api.listen: expected string, received number`);
});

test('every mistake is told, not only the first', async () => {
  const { error, file } = await start('redsi: embedded\nhost: .x\nworker: {concurrency: 0}\n');

  expect(`${error.message}; ${error.facts['and also'] ?? ''}`).toContain(`${file}:1: redsi`);
  expect(`${error.message}; ${error.facts['and also'] ?? ''}`).toContain(`${file}:2: host`);
  expect(`${error.message}; ${error.facts['and also'] ?? ''}`).toContain(
    `${file}:3: worker.concurrency`,
  );
});

test('a mistake within a source names its line', async () => {
  const { error, file } = await start(
    'sources:\n  orders:\n    host: db1\n    ssh:\n      prot: 22\n',
  );

  expect(error.message).toBe(`${file}:5: sources.orders.ssh.prot: unknown key`);
});

test('what is missing names the line above it', async () => {
  const { error, file } = await start('sources:\n  orders:\n    port: 5432\n');

  expect(error.message).toBe(
    `${file}:2: sources.orders.host: is missing: name one server here, or several in \`hosts\``,
  );
});

test('what is not YAML, and a key that stands twice, are told with their line', async () => {
  const torn = await start('api:\n  tokens: [\n');
  const twice = await start('host: a\nredis: embedded\nhost: b\n');

  expect(torn.error.message).toMatch(/pgcloned\.yaml:\d+: /);
  expect(twice.error.message).toMatch(/pgcloned\.yaml:3: map keys must be unique/);
});

test('a variable overrides the file, and a mistake in it names the variable', async () => {
  const { error } = await start('worker: {concurrency: 3}\n', {
    PGCLONED_WORKER_CONCURRENCY: 'many',
  });

  expect(error.message).toBe(
    'environment variable PGCLONED_WORKER_CONCURRENCY: worker.concurrency: expected number, received string',
  );
});

test('a list in a variable is comma separated, and a mistake in one item names the variable', async () => {
  const { error } = await start('', { PGCLONED_WORKER_DATA_ROOTS: '/srv/a, srv/b' });

  expect(error.message).toBe(
    'environment variable PGCLONED_WORKER_DATA_ROOTS: worker.dataRoots.1: must be an absolute path',
  );
});

test('an unknown PGCLONED variable stops the start, but for those of Kubernetes', async () => {
  const unknown = await start('', { PGCLONED_WORKER_CONCURENCY: '3' });
  const kubernetes = await start('', {
    PGCLONED_SERVICE_HOST: '10.0.0.1',
    PGCLONED_API_PORT_7432_TCP_ADDR: '10.0.0.1',
  });

  expect(unknown.error.message).toBe('unknown environment variable PGCLONED_WORKER_CONCURENCY');
  expect(kubernetes.error.code).toBe('UNAUTHENTICATED');
});

test('a variable that is empty counts as not set', async () => {
  const { error } = await start('', { PGCLONED_REDIS: '', PGCLONED_HOST: '' });

  expect(error.code).toBe('UNAUTHENTICATED');
});

test('a configuration that is not there is an error where it was named', async () => {
  const { status, stderr } = await workplace.pgcloned([
    '--config',
    '/nonexistent.yaml',
    'host',
    'list',
  ]);

  expect(status).toBe(2);
  expect(stderr).toContain('cannot read /nonexistent.yaml: there is no such file');
});

test('a secret in the URL of Redis is in no message', async () => {
  const { stderr } = await start('redis: http://user:hunter2@db\n');

  expect(stderr).toContain('redis: must be embedded');
  expect(stderr).not.toContain('hunter2');
});

test('a state home that is no absolute path is not heeded', async () => {
  const { error } = await start('', { XDG_STATE_HOME: 'state' });

  expect(error.message).toContain(`there is no token in ${workplace.path}/.local/state/pgcloned`);
});

test.skipIf(!runsAsRoot)('a HOME that may not be looked at is not ours', async () => {
  const { error } = await start('', { HOME: '/root/nobody-may-look' });

  expect(error.code).toBe('UNAUTHENTICATED');
  expect(error.message).not.toContain('/root/');
});
