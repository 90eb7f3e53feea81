/** The daemons as processes, beside a real Redis. What they do for a clone is tested in apps/e2e. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { EXIT_STATUS } from '@pgcloned/contract';
import { asPartsUser, freePort, partsEnvironment, startRedis } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { COMMAND, makeWorkplace, type Workplace } from './pgcloned.ts';

interface Daemon extends AsyncDisposable {
  /** Its line on standard output. */
  readonly ready: { readonly url: string; readonly host: string; readonly tokenFile: string };
  /** Sends SIGTERM; settles with the exit status. */
  readonly stop: () => Promise<number | null>;
}

async function startDaemon(
  workplace: Workplace,
  command: string,
  env: Readonly<Record<string, string>>,
): Promise<Daemon> {
  const [file = '', ...args] = asPartsUser(
    [process.execPath, COMMAND, '--json', '--log-level', 'warn', command],
    'TERM',
  );
  const child = spawn(file, args, {
    cwd: '/',
    env: { ...partsEnvironment, ...workplace.environment, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit').then(([status]) => status as number | null);
  const stop = async () => {
    child.kill('SIGTERM');
    return await exited;
  };
  const [line] = (await once(createInterface(child.stdout), 'line')) as [string];
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
  expect(stderr).toContain('cannot make the state directory');
  expect(stderr).toContain('PGCLONED_STATE_DIRECTORY');
});
