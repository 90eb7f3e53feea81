/** `pgcloned run` with a real primary and a real sshd: what it shows, and how it is ended. */
import { existsSync } from 'node:fs';
import { EXIT_STATUS } from '@pgcloned/contract';
import {
  adoptServer,
  descendantsOf,
  freePort,
  leftBehind,
  listProcesses,
  type PostgresServer,
  runAsPartsUser,
  type SshServer,
  startPrimary,
  startSshd,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { COMMAND, makeWorkplace, said, startPgcloned, type Workplace } from './pgcloned.ts';

let primary: PostgresServer;
let sshd: SshServer;
let workplace: Workplace;
beforeAll(async () => {
  [primary, sshd, workplace] = await Promise.all([
    startPrimary({
      hba: [
        'host all,replication cloner 127.0.0.1/32 scram-sha-256',
        'host all,replication all 127.0.0.1/32 trust',
      ],
    }),
    startSshd(),
    makeWorkplace(),
  ]);
  await primary.query("create role cloner superuser login replication password 'correct'");
});
afterAll(async () => {
  await Promise.all(
    [primary, sshd, workplace].map(async (part) => await part[Symbol.asyncDispose]()),
  );
});

function runTo(target: string, ...more: readonly string[]): readonly string[] {
  return [
    ...['run', '--data-directory', target],
    ...['--host', primary.host, '--port', String(primary.port)],
    ...['--ssh-port', String(sshd.port), '--ssh-user', sshd.user],
    ...['--ssh-key', sshd.privateKeyFile, '--known-hosts', sshd.knownHostsFile],
    ...more,
  ];
}

/** Slow enough for a signal in the middle of the copy. */
const SLOWLY = ['--max-rate', '2MB', '--progress', 'plain', '--progress-interval', '0.2'];

const COPYING = /copy-files: [\d.]+ \w?B of/;

test('options alone make a standby that streams, and the totals are printed', async () => {
  const target = `${workplace.path}/standby`;
  const port = await freePort();

  const { status, stdout, stderr } = await workplace.pgcloned(
    runTo(target, '--start', '--wait-for', 'streaming', '--replica-port', String(port)),
  );

  expect(status).toBe(0);
  expect(stderr).toMatch(/copy-files: done after /);
  expect(stdout).toContain(`is ready in ${target}`);
  expect(stdout).toMatch(/copied +[\d.]+ MB in \d+ files/);
  expect(stdout).toMatch(/verification +transfer passed, wal passed/);
  expect(stdout).toContain(`running on port ${String(port)}`);
  await using standby = await adoptServer(target);
  expect(await standby.query('select pg_is_in_recovery() as standby')).toEqual([{ standby: true }]);
  const [, psql = ''] = / connect +(psql .+)/.exec(stdout) ?? [];
  const printed = `${psql} -XAtc 'select pg_is_in_recovery()'`;
  const answered = await runAsPartsUser(['sh', '-c', printed]);
  expect(answered.stdout.toString()).toBe('t\n');
});

test('with --json every line is an object, and the last one is the result', async () => {
  const target = `${workplace.path}/objects`;

  const { status, stdout } = await workplace.pgcloned(runTo(target, '--json'));

  const lines = stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { event: string });
  expect(status).toBe(0);
  expect(lines[0]).toEqual({
    event: 'started',
    id: expect.stringMatching(/^[0-9a-f]{32}$/) as string,
  });
  expect(lines.at(-1)).toMatchObject({
    event: 'result',
    result: { dataDirectory: target, verification: { wal: 'passed' } },
    instance: { state: 'stopped' },
    leftovers: [],
  });
});

test('on a terminal a bar is drawn, and the totals stand below it', async () => {
  const command = [
    process.execPath,
    COMMAND,
    ...runTo(`${workplace.path}/bar`, '--max-rate', '40MB'),
  ];

  const { stdout } = await runAsPartsUser(
    ['script', '--quiet', '--return', '--command', command.join(' '), '/dev/null'],
    { env: { ...workplace.environment, TERM: 'xterm' } },
  );

  expect(stdout.toString()).toMatch(/\[4\/8\] copy-files +[█░]{30} +\d+ %/);
  expect(stdout.toString()).toMatch(/is ready in .*\/bar\r\n/);
});

test.each([
  ['PGPASSWORD', async () => ({ PGPASSWORD: 'correct' })],
  [
    '~/.pgpass',
    async () => {
      const write = ['sh', '-c', 'umask 077; cat > "$1"', 'sh', `${workplace.path}/.pgpass`];
      await runAsPartsUser(write, { input: '*:*:*:cloner:correct\n' });
      return {};
    },
  ],
] as const)('the password is taken from %s, as psql does it', async (name, prepare) => {
  const env = await prepare();
  const target = `${workplace.path}/by-${name.replaceAll(/\W/g, '')}`;

  const { status, stderr } = await workplace.pgcloned(
    [...runTo(target, '--user', 'cloner', '--progress', 'none')],
    { env },
  );

  expect(stderr).not.toContain('hint');
  expect(status).toBe(0);
});

test('a wrong password ends the command with status 3 and is not repeated', async () => {
  const target = `${workplace.path}/refused`;

  const { status, stderr } = await workplace.pgcloned(
    [...runTo(target, '--user', 'cloner', '--progress', 'none')],
    { env: { PGPASSWORD: 'hunter2' } },
  );

  expect(status).toBe(EXIT_STATUS.access);
  expect(stderr).toContain('code: SOURCE_AUTHENTICATION_FAILED');
  expect(stderr).not.toContain('hunter2');
  expect(existsSync(target)).toBe(false);
});

test('a target that is not empty ends the command with status 5 and stays as it is', async () => {
  const target = `${workplace.path}/full`;
  await runAsPartsUser(['install', '-D', '/etc/hostname', `${target}/mine`]);

  const { status, stderr } = await workplace.pgcloned(runTo(target, '--progress', 'none'));

  expect(status).toBe(EXIT_STATUS.conflict);
  expect(stderr).toContain('code: TARGET_NOT_EMPTY');
  expect(existsSync(`${target}/mine`)).toBe(true);
});

test.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
  '%s in the middle of the copy undoes everything, with status 130',
  async (signal) => {
    const target = `${workplace.path}/cancelled-${signal}`;
    await using run = startPgcloned(workplace, runTo(target, ...SLOWLY));
    await said(run.child.stderr, COPYING);

    run.child.kill(signal);
    const { status, stderr } = await run.ended;

    expect(status).toBe(EXIT_STATUS.cancelled);
    expect(stderr).toContain(`stopped by ${signal}`);
    expect(existsSync(`${target}/global/pg_control`)).toBe(false);
    expect(
      await leftBehind({ names: [target], servers: [primary], directories: [workplace.path] }),
    ).toEqual([]);
  },
);

test('a second signal ends the command at once, with the status of that signal', async () => {
  const target = `${workplace.path}/killed`;
  await using run = startPgcloned(workplace, runTo(target, ...SLOWLY));
  await said(run.child.stderr, COPYING);
  // A source host that does not answer makes the tidying up last, so that there is a middle of it.
  const sessions = descendantsOf(sshd.pid, await listProcesses()).map(({ pid }) => pid);
  const signalSessions = (signal: NodeJS.Signals) => {
    for (const session of sessions) {
      try {
        process.kill(session, signal);
      } catch (error) {
        // One of the processes that only sleep for a second has ended since.
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
      }
    }
  };
  signalSessions('SIGSTOP');
  // Also when the test fails: what is stopped cannot end by itself.
  using _ = {
    [Symbol.dispose]: () => {
      signalSessions('SIGCONT');
    },
  };
  const pid = run.child.pid ?? 0;

  run.child.kill('SIGINT');
  await expect
    .poll(async () =>
      descendantsOf(pid, await listProcesses())
        .map(({ args }) => args)
        .join(),
    )
    .not.toContain('--files-from');
  run.child.kill('SIGTERM');
  const { status } = await run.ended;

  expect(status).toBe(128 + 15);
  expect(existsSync(`${target}/global/pg_control`)).toBe(false);
});
