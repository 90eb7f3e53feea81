import { freePort, startRedis } from '@pgcloned/testbed';
import { Redis } from 'ioredis';
import { expect, test } from 'vitest';
import { openCloneStore } from '../src/index.ts';
import { describeRedis, redisAddress } from '../src/redis-connection.ts';

test.each([
  ['unix:///run/redis.sock', { path: '/run/redis.sock' }],
  ['redis://db1', { host: 'db1', port: 6379, db: 0 }],
  ['redis://:p%40ss@db1:7000/3', { host: 'db1', port: 7000, db: 3, password: 'p@ss' }],
  ['redis://me:x@[::1]', { host: '::1', port: 6379, db: 0, username: 'me', password: 'x' }],
  ['rediss://db1', { host: 'db1', port: 6379, db: 0, tls: { servername: 'db1' } }],
])('%s is understood', (url, address) => {
  expect(redisAddress(url)).toEqual(address);
});

test.each([
  'redis://:hunter2@db1/orders',
  'redis://:hunter2@db1/1/2',
  'redis://:hunter2@db1/0?password=other',
  'redis://:hunter2@db1/0#1',
  'redis://:hunter2%zz@db1',
  'redis://',
])('%s is refused instead of being read in part', (url) => {
  expect(() => redisAddress(url)).toThrow(/^the Redis URL cannot be read$/);
});

test('a password is neither in the description of a server nor in an error about its URL', async () => {
  expect(describeRedis('redis://me:secret@db1')).toBe('db1:6379');
  const broken = openCloneStore({ redisUrl: 'redis://me:secret@db1:port', onError: () => {} });
  const error = await broken.catch((reason: unknown) => reason);
  expect(error).toMatchObject({ code: 'CONFIGURATION_INVALID' });
  expect(JSON.stringify(error, Object.getOwnPropertyNames(error))).not.toContain('secret');
});

test('a password that the server refuses appears in no error', async () => {
  await using server = await startRedis();
  const admin = new Redis(server.socket);
  await admin.config('SET', 'requirepass', 'right');
  const port = await freePort();
  await admin.config('SET', 'port', port);
  admin.disconnect();
  const errors: Error[] = [];

  await using store = await openCloneStore({
    redisUrl: `redis://:secret-wrong@127.0.0.1:${String(port)}`,
    onError: (error) => errors.push(error),
  });
  const refused = await store.ping().catch((error: unknown) => error as Error);

  expect(refused).toMatchObject({ code: 'QUEUE_UNAVAILABLE' });
  const said = [...errors, refused].map((error) =>
    JSON.stringify([error, (error as Error).cause, (error as Error).stack]),
  );
  expect(said.join('\n')).not.toContain('secret-wrong');
});
