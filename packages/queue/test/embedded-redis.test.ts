import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Redis } from 'ioredis';
import { expect, onTestFinished, test } from 'vitest';
import { startEmbeddedRedis } from '../src/index.ts';
import { eventually } from './clones.ts';

async function newDirectory(): Promise<string> {
  const parent = await mkdtemp(join(tmpdir(), 'pgcloned-embedded-'));
  onTestFinished(async () => {
    await rm(parent, { recursive: true, force: true });
  });
  return join(parent, 'redis');
}

function connect(url: string): Redis {
  const redis = new Redis(url.slice('unix://'.length));
  redis.on('error', () => {});
  onTestFinished(() => {
    redis.disconnect();
  });
  return redis;
}

async function pidOf(redis: Redis): Promise<number> {
  return Number(/process_id:(\d+)/.exec(await redis.info('server'))?.[1]);
}

test('it is reached by a socket that nobody else can reach, and keeps what it was told', async () => {
  const directory = await newDirectory();
  {
    await using server = await startEmbeddedRedis({ directory, onError: () => {} });
    await connect(server.url).set('key', 'value');
    expect((await stat(directory)).mode & 0o777).toBe(0o700);
    expect((await stat(server.url.slice('unix://'.length))).mode & 0o777).toBe(0o700);
  }
  await using server = await startEmbeddedRedis({ directory, onError: () => {} });

  expect(await connect(server.url).get('key')).toBe('value');
  expect(await connect(server.url).config('GET', 'maxmemory-policy')).toContain('noeviction');
});

test('it is started again when it falls', async () => {
  const errors: Error[] = [];
  await using server = await startEmbeddedRedis({
    directory: await newDirectory(),
    onError: (error) => errors.push(error),
  });
  const redis = connect(server.url);
  const pid = await pidOf(redis);

  process.kill(pid, 'SIGKILL');
  await eventually(async () => (await pidOf(redis)) !== pid);

  expect(errors).toMatchObject([{ code: 'PROCESS_FAILED' }]);
});

test('it dies with the process that started it', async () => {
  const directory = await newDirectory();
  const source = new URL('../src/index.ts', import.meta.url).href;
  const script = `
    const { startEmbeddedRedis } = await import(${JSON.stringify(source)});
    await startEmbeddedRedis({ directory: ${JSON.stringify(directory)}, onError: () => {} });
    process.kill(process.pid, 'SIGKILL');`;

  await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script]).catch(
    () => undefined,
  );

  const socket = join(directory, 'redis.sock');
  const unixSockets = async () => await readFile('/proc/net/unix', 'utf8');
  await eventually(async () => !(await unixSockets()).includes(socket));
});

test('a server that cannot start says why', async () => {
  const directory = await newDirectory();
  await using _holder = await startEmbeddedRedis({ directory, onError: () => {} });
  const long = join(directory, 'x'.repeat(120));

  await expect(startEmbeddedRedis({ directory: long, onError: () => {} })).rejects.toMatchObject({
    code: 'CONFIGURATION_INVALID',
  });
});
