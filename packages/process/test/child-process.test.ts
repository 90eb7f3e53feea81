/** Real children: it is the kernel's behaviour that is put to the test. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { type Command, runProcess, startProcess } from '../src/index.ts';
import { expectGone, isAlive } from './processes.ts';

const { signal } = new AbortController();

function sh(script: string, more: Partial<Command> = {}): Command {
  return { file: 'sh', args: ['-c', script], env: {}, ...more };
}

test('a cancelled child that ignores SIGTERM is gone when the promise settles', async () => {
  const controller = new AbortController();
  let pid = 0;
  const run = runProcess(sh(`trap '' TERM; echo $$; while :; do sleep 1; done`), {
    signal: controller.signal,
    killAfterMs: 100,
    onLine: (line) => {
      pid = Number(line);
      controller.abort(new Error('the user cancelled'));
    },
  });

  await expect(run).rejects.toThrow('the user cancelled');

  expect(pid).toBeGreaterThan(1);
  expect(isAlive(pid)).toBe(false);
});

test('a child that does nothing for too long hangs and is stopped; one that works is waited for', async () => {
  const hanging = runProcess(sh('exec sleep 600'), { signal, stallMs: 100 });
  const working = runProcess(
    sh('end=$(($(date +%s) + 3)); while [ "$(date +%s)" -lt $end ]; do :; done'),
    { signal, stallMs: 2_000 },
  );

  await expect(hanging).rejects.toMatchObject({ code: 'STALLED', message: 'sh hangs' });
  expect(await working).toMatchObject({ status: 0 });
});

test('stopping a child stops a grandchild that ignores SIGTERM and outlives it', async () => {
  let grandchild = 0;
  const started = Promise.withResolvers<void>();
  const stubborn = `trap "" TERM; echo $$; exec sleep 600`;
  const child = await startProcess(sh(`sh -c '${stubborn}' & exec sleep 600`), {
    killAfterMs: 100,
    onLine: (line) => {
      grandchild = Number(line);
      started.resolve();
    },
  });
  await started.promise;

  const exit = await child.stop();

  expect(exit).toEqual({ status: null, signal: 'SIGTERM' });
  expect(isAlive(grandchild)).toBe(false);
});

test('what a child has forked ends with it when somebody kills the child', async () => {
  let grandchild = 0;
  const started = Promise.withResolvers<void>();
  const child = await startProcess(sh('sleep 600 >/dev/null 2>&1 & echo $!; wait'), {
    onLine: (line) => {
      grandchild = Number(line);
      started.resolve();
    },
  });
  await started.promise;

  process.kill(child.pid, 'SIGKILL');

  expect(await child.exited).toEqual({ status: null, signal: 'SIGKILL' });
  expect(isAlive(grandchild)).toBe(false);
});

test('a child is killed by the kernel when its parent is killed', async () => {
  const fixture = fileURLToPath(new URL('fixtures/starts-a-sleeper.ts', import.meta.url));
  const parent = spawn(process.execPath, [fixture], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [chunk] = (await once(parent.stdout, 'data')) as [Buffer];
  const pid = Number(chunk.toString());
  expect(isAlive(pid)).toBe(true);

  parent.kill('SIGKILL');
  await once(parent, 'exit');

  await expectGone(pid);
});

test('a child that has a session of its own survives the stop of the one that started it', async () => {
  let daemon = 0;
  const started = Promise.withResolvers<void>();
  const child = await startProcess(sh(`setsid sh -c 'echo $$; exec sleep 600' & exec sleep 600`), {
    onLine: (line) => {
      daemon = Number(line);
      started.resolve();
    },
  });
  await started.promise;

  await child.stop();

  expect(isAlive(daemon)).toBe(true);
  process.kill(daemon, 'SIGKILL');
  await expectGone(daemon);
});

test('a daemon that holds the pipes of its starter does not keep us waiting', async () => {
  const { stdout } = await runProcess(sh('setsid sleep 600 & echo $!'), {
    signal,
  });

  const daemon = Number(stdout.toString());
  expect(isAlive(daemon)).toBe(true);
  process.kill(daemon, 'SIGKILL');
  await expectGone(daemon);
});

test.each([
  ['in no directory of PATH', 'pgcloned-no-such-program'],
  ['at its path', '/usr/bin/pgcloned-no-such-program'],
  ['of that name but a directory', '/usr'],
  ['of that name but a file that may not be executed', '/etc/passwd'],
])('a program that is %s is TOOL_MISSING', async (_, file) => {
  const command = { file, args: [], env: {} };

  await expect(startProcess(command)).rejects.toMatchObject({ code: 'TOOL_MISSING' });
  await expect(runProcess(command, { signal })).rejects.toMatchObject({
    code: 'TOOL_MISSING',
    message: `${file} is not installed`,
    hint: expect.stringContaining(file),
  });
});

test('a program is looked for in the PATH that the child is given', async () => {
  const command = { file: 'sh', args: ['-c', 'exit 0'], env: { PATH: '/nonexistent' } };

  await expect(runProcess(command, { signal })).rejects.toMatchObject({
    code: 'TOOL_MISSING',
    facts: { program: 'sh' },
  });
});

test('a missing working directory is not reported as a missing program', async () => {
  const run = runProcess(sh('exit 0', { cwd: '/nonexistent' }), { signal });

  await expect(run).rejects.toMatchObject({ code: 'ENOENT' });
});

test('the input reaches the child and ends', async () => {
  const input = 'x'.repeat(1_000_000);

  const { stdout } = await runProcess({ file: 'cat', args: [], env: {}, input }, { signal });

  expect(stdout.toString()).toBe(input);
});

test('a child that does not read its input is judged by its exit status alone', async () => {
  const { status } = await runProcess(sh('exit 0', { input: 'x'.repeat(1_000_000) }), { signal });

  expect(status).toBe(0);
});

test('without input a child reads the end of a file at once', async () => {
  const { stdout } = await runProcess(sh('cat; echo done'), { signal });

  expect(stdout.toString()).toBe('done\n');
});

test('a child that floods us is stopped and becomes an error', async () => {
  const run = runProcess({ file: 'yes', args: [], env: {} }, { signal, outputBytesMax: 100_000 });

  await expect(run).rejects.toMatchObject({
    code: 'PROCESS_FAILED',
    facts: { program: 'yes', outputBytesMax: 100_000 },
  });
});

test('another exit status than the accepted ones is PROCESS_FAILED with the last words of the child', async () => {
  const command = sh('echo working; echo it broke >&2; exit 3');

  await expect(runProcess(command, { signal })).rejects.toMatchObject({
    code: 'PROCESS_FAILED',
    message: 'sh failed with exit status 3',
    facts: { program: 'sh', exitStatus: 3, exitSignal: null, stderr: 'it broke' },
  });
  await expect(runProcess(command, { signal, accept: [0, 3] })).resolves.toMatchObject({
    status: 3,
    stderr: 'it broke',
  });
});

test('a child that died of a signal is an error unless any end is accepted', async () => {
  const command = sh('kill -KILL $$');

  await expect(runProcess(command, { signal, accept: [0, 1] })).rejects.toMatchObject({
    message: 'sh failed with signal SIGKILL',
  });
  await expect(runProcess(command, { signal, accept: 'any' })).resolves.toMatchObject({
    status: null,
    signal: 'SIGKILL',
  });
});

test('only the last lines of standard error are kept', async () => {
  const { stderr } = await runProcess(sh('seq 1 1000 >&2; head -c 100000 /dev/zero >&2'), {
    signal,
  });

  const lines = stderr.split('\n');
  expect(lines).toHaveLength(40);
  expect(lines.slice(-3).map((line) => line.length)).toEqual([4, 1000, 1000]);
});

test('nothing is started once the signal has aborted', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'pgcloned-process-'));
  try {
    const aborted = AbortSignal.abort(new Error('too late'));

    await expect(
      runProcess(sh('touch here', { cwd: directory }), { signal: aborted }),
    ).rejects.toThrow('too late');

    expect(await readdir(directory)).toEqual([]);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test('lines arrive one by one, whether they end with a line feed, a carriage return, both or not at all', async () => {
  const lines: string[] = [];
  await runProcess(sh(String.raw`printf 'a\rb\r\nc\n\nd\342\200\250e'`), {
    signal,
    onLine: (line) => lines.push(line),
  });

  expect(lines).toEqual(['a', 'b', 'c', '', 'd\u2028e']);
});

test('names of any bytes pass as latin1 lines', async () => {
  const lines: string[] = [];
  await runProcess(sh(String.raw`printf 'caf\351 \302\205\n'`), {
    signal,
    encoding: 'latin1',
    onLine: (line) => lines.push(line),
  });

  expect(lines.map((line) => Buffer.from(line, 'latin1'))).toEqual([
    Buffer.from('caf\xe9 \xc2\x85', 'latin1'),
  ]);
});

test('a child gets the environment that it was given and no more than PATH of ours', async () => {
  process.env.PGCLONED_TEST_SECRET = 'leaked';
  try {
    const { stdout } = await runProcess(
      { file: 'env', args: [], env: { PGPASSWORD: 'secret' } },
      { signal },
    );

    const names = stdout
      .toString()
      .trim()
      .split('\n')
      .map((line) => line.split('=')[0]);
    expect(names.toSorted()).toEqual(['PATH', 'PGPASSWORD']);
  } finally {
    delete process.env.PGCLONED_TEST_SECRET;
  }
});

test('a secret in environment or input shows in no command line', async () => {
  const script = 'IFS= read -r line; echo $$; exec sleep 600';
  const started = Promise.withResolvers<number>();
  const child = await startProcess(
    sh(script, { env: { PGPASSWORD: 'swordfish' }, input: 'swordfish\n' }),
    { onLine: (line) => started.resolve(Number(line)) },
  );
  try {
    const pid = await started.promise;

    expect(pid).toBe(child.pid);
    expect(await readFile(`/proc/${pid}/cmdline`, 'latin1')).not.toContain('swordfish');
    expect(await readFile(`/proc/${pid}/environ`, 'latin1')).toContain('swordfish');
  } finally {
    await child.stop();
  }
});

test('a stop after the end answers with the end', async () => {
  const child = await startProcess(sh('exit 7'));
  await child.exited;

  expect(await child.stop()).toEqual({ status: 7, signal: null });
});
