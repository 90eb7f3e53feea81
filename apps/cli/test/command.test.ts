/** What anyone meets first: help, versions, usage errors, exit statuses, tokens. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { EXIT_STATUS, VERSION } from '@pgcloned/contract';
import { runsAsRoot } from '@pgcloned/testbed';
import type { Command } from 'commander';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Invocation } from '../src/invocation.ts';
import { buildProgram } from '../src/program.ts';
import { COMMAND, makeWorkplace, type Workplace } from './pgcloned.ts';

let workplace: Workplace;
beforeAll(async () => {
  workplace = await makeWorkplace();
});
afterAll(async () => {
  await workplace[Symbol.asyncDispose]();
});

test('the version is that of the contract', async () => {
  const { status, stdout } = await workplace.pgcloned(['--version']);

  expect(status).toBe(0);
  expect(stdout).toBe(`${VERSION}\n`);
});

test('every command has a help with its options', async () => {
  const { stdout } = await workplace.pgcloned(['--help']);
  const run = await workplace.pgcloned(['run', '--help']);

  for (const command of ['up', 'api', 'worker', 'run', 'clone', 'host', 'token']) {
    expect(stdout).toContain(`\n  ${command} `);
  }
  expect(run.status).toBe(0);
  expect(run.stdout).toContain('--temporary-wal-directory');
  expect(run.stdout).toContain('Examples:');
});

test('every help has examples, and the options that may stand behind every command', () => {
  const topics = ['exit-statuses', 'variables'];
  const leaves = leavesOf(buildProgram({} as Invocation)).filter(
    (command) => !topics.includes(command.name()),
  );

  const helps = leaves.map((command) => {
    let text = '';
    command.configureOutput({ writeOut: (part) => (text += part) });
    command.outputHelp();
    return text;
  });

  expect(helps.length).toBeGreaterThan(15);
  for (const help of helps) {
    expect(help).toContain('Examples:\n  pgcloned ');
    expect(help).toContain('--config <file>');
  }
});

test('the help publishes every exit status', async () => {
  const { status, stdout } = await workplace.pgcloned(['help', 'exit-statuses']);

  expect(status).toBe(0);
  for (const number of Object.values(EXIT_STATUS)) {
    expect(stdout).toMatch(new RegExp(`^ +${String(number)}  `, 'm'));
  }
});

test('the help names every variable', async () => {
  const { stdout } = await workplace.pgcloned(['help', 'variables']);

  expect(stdout).toContain('PGCLONED_API_LISTEN');
  expect(stdout).toContain('PGCLONED_WORKER_STALL_SECONDS');
});

test.each([
  ['an unknown command', ['clnoe'], 'unknown command'],
  ['an unknown option', ['run', '--replcae'], 'unknown option'],
  ['a missing option', ['token', 'create'], "required option '--name <name>' not specified"],
  ['a missing argument', ['clone', 'show'], "missing required argument 'id'"],
  ['a value that is none of the choices', ['run', '--progress', 'loud'], 'Allowed choices are'],
  ['a contradiction', ['run', '--replace', '--resync'], 'cannot be used with option'],
  ['a group without a command', ['clone'], 'a command is missing'],
  ['a number that is none', ['clone', 'list', '--limit', 'x'], 'not a positive number: x'],
  ['a number that is not whole', ['clone', 'list', '--limit', '0.5'], 'not a whole number: 0.5'],
  ['a change without anything', ['clone', 'change', '0'.repeat(32)], 'nothing is to be changed'],
  ['a rate that is none', ['clone', 'change', 'x', '--max-rate', 'fast'], 'not a size: fast'],
  ['a number of workers that is none', ['clone', 'change', 'x', '-j', 'all'], 'not a positive'],
])('%s is a usage error', async (_what, args, message) => {
  const { status, stdout, stderr } = await workplace.pgcloned(args);

  expect(status).toBe(EXIT_STATUS.usage);
  expect(stdout).toBe('');
  expect(stderr).toContain(message);
  expect(stderr).not.toMatch(/\n\s+at /);
});

test('a usage error is one object with --json', async () => {
  const { status, stderr } = await workplace.pgcloned(['--json', 'token', 'create']);

  expect(status).toBe(EXIT_STATUS.usage);
  expect(JSON.parse(stderr)).toMatchObject({ error: { code: 'REQUEST_INVALID', exitStatus: 2 } });
});

test('a stack trace appears only when it is asked for', async () => {
  const quiet = await workplace.pgcloned(['--config', '/nonexistent', 'host', 'list']);
  const loud = await workplace.pgcloned(['--debug', '--config', '/nonexistent', 'host', 'list']);

  expect(quiet.stderr).not.toMatch(/\n\s+at /);
  expect(loud.stderr).toMatch(/\n\s+at /);
});

test('a new token is shown once, with the entry that holds only its hash', async () => {
  const { status, stdout } = await workplace.pgcloned([
    ...['--json', 'token', 'create', '--name', 'provisioner', '--role', 'viewer'],
  ]);

  const { token, entry } = JSON.parse(stdout) as { token: string; entry: unknown };
  expect(status).toBe(0);
  expect(token).toMatch(/^pgcloned_[\w-]{43}$/);
  expect(entry).toEqual({
    name: 'provisioner',
    sha256: createHash('sha256').update(token).digest('hex'),
    role: 'viewer',
  });
});

test('the printed entry of a token is a configuration that is accepted', async () => {
  const { stdout } = await workplace.pgcloned(['token', 'create', '--name', 'o\'brien: "x"']);
  const file = await workplace.file('tokens.yaml', stdout.slice(stdout.indexOf('api:')));

  const { stderr } = await workplace.pgcloned(['--config', file, 'host', 'list']);

  expect(stderr).toContain('there is no token in');
});

test('an API that does not answer is told with its address and a remedy', async () => {
  const { status, stderr } = await workplace.pgcloned(['clone', 'list'], {
    env: { PGCLONED_URL: 'http://127.0.0.1:1', PGCLONED_TOKEN: 'x' },
  });

  expect(status).toBe(EXIT_STATUS.unavailable);
  expect(stderr).toContain('http://127.0.0.1:1');
  expect(stderr).toContain('hint: ');
});

test.each([
  '127.0.0.1:7432',
  'localhost:7432',
  'http://me:hunter2@127.0.0.1:1',
  'http://me:hunter2@',
])('the address %s is refused, and no password in it repeated', async (url) => {
  const { status, stderr } = await workplace.pgcloned(['clone', 'list'], {
    env: { PGCLONED_URL: url, PGCLONED_TOKEN: 'x' },
  });

  expect(status).toBe(EXIT_STATUS.usage);
  expect(stderr).toContain('hint: ');
  expect(stderr).not.toContain('hunter2');
});

test('the token of this machine is not sent to another address', async () => {
  const { status, stderr } = await workplace.pgcloned(['clone', 'list'], {
    env: { PGCLONED_URL: 'http://127.0.0.1:1' },
  });

  expect(status).toBe(EXIT_STATUS.access);
  expect(stderr).toContain('PGCLONED_TOKEN is not');
});

test('the launcher is plain JavaScript that names the Node it needs', async () => {
  const text = await readFile(COMMAND, 'utf8');

  expect(text).toContain('NODE_MAJOR_MIN = 24');
  expect(text).not.toMatch(/\bawait\b/);
});

test.skipIf(!runsAsRoot)('as root nothing is cloned: the remedy repeats the command', () => {
  for (const command of ['run', 'up', 'worker']) {
    const { status, stderr } = spawnSync(
      process.execPath,
      [COMMAND, command, '--config', "it's.yaml"],
      { encoding: 'utf8', env: workplace.environment },
    );
    expect(status).toBe(EXIT_STATUS.usage);
    expect(stderr).toContain(`pgcloned ${command} may not run as root`);
    expect(stderr).toContain(`runuser -u postgres -- pgcloned ${command} --config 'it'\\''s.yaml'`);
  }
});

function leavesOf(command: Command): readonly Command[] {
  return command.commands.length === 0 ? [command] : command.commands.flatMap(leavesOf);
}
