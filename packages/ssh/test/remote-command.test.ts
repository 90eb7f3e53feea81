/** Commands over a real sshd: their input, output and end, and what becomes of them when the connection breaks. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { quoteForShell } from '@pgcloned/process';
import { type SshServer, startSshd } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { connectSsh, type SshConnection } from '../src/index.ts';

const { signal } = new AbortController();

async function connectTo(sshd: SshServer): Promise<SshConnection> {
  return await connectSsh(sshd.target, { signal });
}

test('a command gives its output as bytes, its errors and its status', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);

  const exit = await connection.run(`printf '\\377\\0x'; echo oops >&2; exit 3`, { signal });

  expect(exit).toEqual({
    status: 3,
    signal: null,
    stdout: Buffer.from([0xff, 0, 0x78]),
    stderr: 'oops',
  });
});

test('a command that is killed says by which signal', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);

  const exit = await connection.run('kill -TERM $$', { signal });

  expect(exit).toMatchObject({ status: null, signal: 'SIGTERM' });
});

test('a command reads its input, and has none unless it is given', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);
  const input = 'line\n'.repeat(200_000);

  const [copied, none] = await Promise.all([
    connection.run('cat', { signal, input }),
    connection.run('cat', { signal }),
  ]);

  expect(copied.stdout.toString()).toBe(input);
  expect(none.stdout.length).toBe(0);
});

test('every one of many short commands at a time has its own output', async () => {
  await using sshd = await startSshd({ settings: ['MaxSessions 50'] });
  await using connection = await connectTo(sshd);

  const numbers = Array.from({ length: 40 }, (_, i) => String(i));
  const exits = await Promise.all(
    numbers.map((number) => connection.run(`printf ${number}`, { signal })),
  );

  expect(exits.map(({ stdout }) => stdout.toString())).toEqual(numbers);
});

test('a server that refuses another session says how to allow it', async () => {
  await using sshd = await startSshd({ settings: ['MaxSessions 1'] });
  await using connection = await connectTo(sshd);
  const first = await connection.start('cat', { signal, onLine: () => {} });

  await expect(connection.run('true', { signal })).rejects.toMatchObject({
    code: 'REMOTE_COMMAND_FAILED',
    hint: expect.stringContaining('MaxSessions'),
  });
  first.endInput();
  expect(await first.exited).toEqual({ status: 0, signal: null });
});

test('a command that says too much is an error, and its output is cut off', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);

  const run = connection.run('cat /dev/zero', { signal, outputBytesMax: 1_000_000 });

  await expect(run).rejects.toMatchObject({
    code: 'REMOTE_COMMAND_FAILED',
    facts: { limitBytes: 1_000_000 },
  });
  expect((await connection.run('echo alive', { signal })).stdout.toString()).toBe('alive\n');
});

test('an aborted command ends in the reason, and one that writes ends by that', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);
  const controller = new AbortController();
  const pidFile = join(sshd.directory, 'pid');
  const run = connection.run(`echo $$ >${quoteForShell(pidFile)}; while :; do echo x; done`, {
    signal: controller.signal,
    outputBytesMax: Number.MAX_SAFE_INTEGER,
  });
  await expect.poll(() => existsSync(pidFile)).toBe(true);

  controller.abort(new Error('user cancelled'));

  await expect(run).rejects.toThrow('user cancelled');
  const pid = (await readFile(pidFile, 'utf8')).trim();
  await expect.poll(() => existsSync(`/proc/${pid}`)).toBe(false);
  expect((await connection.run('echo alive', { signal })).stdout.toString()).toBe('alive\n');
});

test('an aborted command that is silent does not keep us', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);

  const run = connection.run('sleep 5', { signal: AbortSignal.timeout(100) });

  await expect(run).rejects.toThrow('timeout');
});

test('nothing is run for a signal that has aborted before', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);
  const file = join(sshd.directory, 'made');

  const run = connection.run(`touch ${file}`, { signal: AbortSignal.abort(new Error('too late')) });

  await expect(run).rejects.toThrow('too late');
  expect(existsSync(file)).toBe(false);
});

test('a started command takes lines, gives lines, and ends with its input', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);
  const lines: string[] = [];
  const process = await connection.start(
    'while read -r line; do echo "got $line"; done; echo bye >&2; printf end; exit 4',
    { signal, onLine: (line) => lines.push(line) },
  );

  process.writeLine('one');
  process.writeLine('ünö');
  await expect.poll(() => lines).toEqual(['got one', 'got ünö']);
  process.endInput();

  expect(await process.exited).toEqual({ status: 4, signal: null });
  expect(lines).toEqual(['got one', 'got ünö', 'end']);
  expect(process.stderrTail()).toBe('bye');
  process.writeLine('to nobody');
});

test('a started command that is aborted loses its input', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);
  const file = join(sshd.directory, 'ended');
  const controller = new AbortController();
  const process = await connection.start(`cat; touch ${file}`, {
    signal: controller.signal,
    onLine: () => {},
  });

  controller.abort(new Error('user cancelled'));

  expect(await process.exited).toEqual({ status: 0, signal: null });
  expect(existsSync(file)).toBe(true);
});

test('a server that is killed is lost for everyone who waits on it', async () => {
  await using sshd = await startSshd();
  await using connection = await connectTo(sshd);
  // Without input of its own it would end at once; so it lasts as long as its sshd.
  const run = connection.run('while kill -0 $PPID; do sleep 0.1; done', { signal });
  const process = await connection.start('cat', { signal, onLine: () => {} });

  await sshd.kill();

  await expect(run).rejects.toMatchObject({ code: 'SOURCE_LOST', facts: { host: '127.0.0.1' } });
  expect(await process.exited).toEqual({ status: null, signal: null });
  expect(await connection.closed).toMatchObject({ code: 'SOURCE_LOST' });
  await expect(connection.run('true', { signal })).rejects.toMatchObject({ code: 'SOURCE_LOST' });
});

test('a disposed connection takes the input of its commands away', async () => {
  await using sshd = await startSshd();
  const connection = await connectTo(sshd);
  const file = join(sshd.directory, 'ended');
  const process = await connection.start(`cat; touch ${file}`, { signal, onLine: () => {} });

  await connection[Symbol.asyncDispose]();

  expect(await process.exited).toEqual({ status: null, signal: null });
  await expect.poll(() => existsSync(file)).toBe(true);
});
