/** The daemons as processes, beside a real Redis. What they do for a clone is tested in apps/e2e. */
import { mkdir, readFile, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { EXIT_STATUS } from '@pgcloned/contract';
import { freePort, listProcesses, startRedis } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { makeWorkplace, said, startPgcloned, type Workplace } from './pgcloned.ts';

interface Daemon extends AsyncDisposable {
  /** Its line on standard output. */
  readonly ready: {
    readonly url: string;
    readonly host: string;
    readonly tokenFile: string;
    readonly pid: number;
  };
  /** Sends SIGTERM; settles with the exit status. */
  readonly stop: () => Promise<number | null>;
}

async function startDaemon(
  workplace: Workplace,
  command: string,
  env: Readonly<Record<string, string>>,
): Promise<Daemon> {
  const args = ['--json', '--log-level', 'warn', command];
  const { child, ended } = startPgcloned(workplace, args, env);
  const line = await said(child.stdout, /\n/);
  const stop = async () => {
    child.kill('SIGTERM');
    return (await ended).status;
  };
  return {
    ready: JSON.parse(line) as Daemon['ready'],
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop();
    },
  };
}

async function listenVariable(): Promise<Record<string, string>> {
  return { PGCLONED_API_LISTEN: `127.0.0.1:${String(await freePort())}` };
}

test('a daemon whose log lies on a full disk goes on', async () => {
  await using workplace = await makeWorkplace();
  await using redis = await startRedis();
  const env = { ...(await listenVariable()), PGCLONED_REDIS: redis.url };
  const args = ['--json', '--log-level', 'debug', 'api'];
  const { child, ended } = startPgcloned(workplace, args, env, { log: '/dev/full' });
  const { url } = JSON.parse(await said(child.stdout, /\n/)) as Daemon['ready'];

  // Each is a line of the log.
  for (const path of ['/healthz', '/v1/clones', '/healthz']) await fetch(new URL(path, url));
  const { status } = await fetch(new URL('/healthz', url));
  child.kill('SIGTERM');

  expect(status).toBe(200);
  expect((await ended).status).toBe(EXIT_STATUS.ok);
});

test('the API says where it listens, is found with its token, and stops with status 0', async () => {
  await using workplace = await makeWorkplace();
  await using redis = await startRedis();
  const env = { ...(await listenVariable()), PGCLONED_REDIS: redis.url };
  await using api = await startDaemon(workplace, 'api', env);

  const list = await workplace.pgcloned(['clone', 'list'], { env });
  const show = await workplace.pgcloned(['clone', 'show', '0'.repeat(32)], { env });
  const watch = await workplace.pgcloned(['clone', 'watch', '0'.repeat(32)], { env });
  const token = (await readFile(api.ready.tokenFile, 'utf8')).trim();
  const byUrl = await workplace.pgcloned(['--json', 'host', 'list'], {
    env: { PGCLONED_URL: api.ready.url, PGCLONED_TOKEN: token },
  });
  const refused = await workplace.pgcloned(['host', 'list'], {
    env: { PGCLONED_URL: api.ready.url, PGCLONED_TOKEN: 'wrong' },
  });

  expect(list).toMatchObject({ status: 0, stderr: '' });
  expect(list.stdout).toMatch(/^ID +SOURCE +HOST/);
  expect(show.status).toBe(EXIT_STATUS.notFound);
  expect(watch.status).toBe(EXIT_STATUS.notFound);
  expect(byUrl).toMatchObject({ status: 0, stdout: '' });
  expect(refused.status).toBe(EXIT_STATUS.access);
  expect((await stat(api.ready.tokenFile)).mode & 0o777).toBe(0o600);
  expect(await api.stop()).toBe(0);
});

test('what the API finds wrong in a SPEC is told with the line of the file', async () => {
  await using workplace = await makeWorkplace();
  await using redis = await startRedis();
  const env = { ...(await listenVariable()), PGCLONED_REDIS: redis.url };
  await using _ = await startDaemon(workplace, 'api', env);
  const file = await workplace.file(
    'spec.yaml',
    'source: {name: orders}\ntarget:\n  host: replica-1\n  dataDirectory: /srv/a\ntransfer:\n  wrokers: 3\n',
  );

  const { status, stderr } = await workplace.pgcloned(['clone', 'create', '-f', file], { env });

  expect(status).toBe(EXIT_STATUS.usage);
  expect(stderr).toContain(`${file}:6: transfer.wrokers`);
});

test.each(['api', 'worker'])('%s alone says what to do without a Redis', async (command) => {
  await using workplace = await makeWorkplace();

  const { status, stderr } = await workplace.pgcloned([command]);

  expect(status).toBe(EXIT_STATUS.unavailable);
  expect(stderr).toContain('no embedded Redis runs in');
  expect(stderr).toContain('Start `pgcloned up`');
});

test('a state directory that cannot be made is told with a remedy', async () => {
  await using workplace = await makeWorkplace();

  const { status, stderr } = await workplace.pgcloned(['api'], {
    env: { PGCLONED_STATE_DIRECTORY: join(workplace.path, 'empty.yaml', 'state') },
  });

  expect(status).toBe(EXIT_STATUS.usage);
  expect(stderr).toContain('cannot use the state directory');
  expect(stderr).toContain('PGCLONED_STATE_DIRECTORY');
});

test('a state directory that belongs to somebody else is told with a remedy', async () => {
  await using workplace = await makeWorkplace();
  const directory = join(workplace.path, 'state');
  await mkdir(directory, { mode: 0o555 });

  const { status, stderr } = await workplace.pgcloned(['api'], {
    env: { PGCLONED_STATE_DIRECTORY: directory },
  });

  expect(status).toBe(EXIT_STATUS.usage);
  expect(stderr).toContain(`cannot use the state directory ${directory}`);
});

test('a token file without a token is told, and not taken for a token', async () => {
  await using workplace = await makeWorkplace();
  const env = { ...(await listenVariable()), PGCLONED_HOST: 'replica-1' };
  await (await startDaemon(workplace, 'up', env)).stop();
  await truncate(join(workplace.path, '.local/state/pgcloned/token'));

  const { status, stderr } = await workplace.pgcloned(['up'], { env });

  expect(status).toBe(EXIT_STATUS.usage);
  expect(stderr).toContain('Remove the file');
});

test('`up` runs everything without a configuration, and leaves no process', async () => {
  await using workplace = await makeWorkplace();
  const env = { ...(await listenVariable()), PGCLONED_HOST: 'replica-1' };
  await using up = await startDaemon(workplace, 'up', env);

  const hosts = await workplace.pgcloned(['--json', 'host', 'list'], { env });
  const status = await up.stop();

  expect(up.ready.host).toBe('replica-1');
  expect(JSON.parse(hosts.stdout)).toMatchObject({ name: 'replica-1', online: true });
  expect(status).toBe(0);
  const processes = await listProcesses();
  expect(processes.filter(({ args }) => args.includes(workplace.path))).toEqual([]);
});

test('a second `up` on one state directory is refused, and the first goes on', async () => {
  await using workplace = await makeWorkplace();
  const env = await listenVariable();
  await using _ = await startDaemon(workplace, 'up', env);

  const second = await workplace.pgcloned(['up'], { env: await listenVariable() });
  const list = await workplace.pgcloned(['clone', 'list'], { env });

  expect(second.status).toBe(EXIT_STATUS.conflict);
  expect(second.stderr).toContain('another pgcloned uses');
  expect(list.status).toBe(0);
});

test('an API alone attaches to the Redis of `up`, and both take the token of the first start', async () => {
  await using workplace = await makeWorkplace();
  await using up = await startDaemon(workplace, 'up', {
    ...(await listenVariable()),
    PGCLONED_HOST: 'replica-1',
  });
  const env = await listenVariable();
  await using api = await startDaemon(workplace, 'api', env);

  const hosts = await workplace.pgcloned(['--json', 'host', 'list'], { env });

  expect(api.ready.tokenFile).toBe(up.ready.tokenFile);
  expect(hosts.stdout).toContain('replica-1');
});
