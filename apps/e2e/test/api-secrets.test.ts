/**
 * While clones run, succeed and fail, at log level debug: the password of the database, the secret of the rsync daemon
 * and the tokens are in no command line, no log, no answer, nothing that Redis ever wrote, and in no file that others
 * may read.
 */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Clone } from '@pgcloned/contract';
import {
  findSecrets,
  freePort,
  listProcesses,
  type PrivateRedis,
  runAsPartsUser,
  type SecretSearch,
  startRedis,
  stopServer,
  watchForSecrets,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Product, SLOW, startProduct } from './product.ts';

const WRONG_PASSWORD = randomBytes(16).toString('hex');

const owned = new AsyncDisposableStack();
let redis: PrivateRedis;
let product: Product;

beforeAll(async () => {
  redis = owned.use(await startRedis());
  product = owned.use(
    await startProduct({
      configuration: { redis: redis.url },
      env: { PGCLONED_LOG_LEVEL: 'debug' },
    }),
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

/** Where the daemon of this attempt keeps its files, and the password that it lets in; waits until there is one. */
async function rsyncSecretOf({
  id,
  attempt,
}: Clone): Promise<{ readonly directory: string; readonly secret: string }> {
  const command = new RegExp(`^rsync --daemon .*?(/\\S*pgcloned_${id}_${String(attempt)}\\S*)`);
  const deadlineMs = Date.now() + 20_000;
  for (;;) {
    const commands = (await listProcesses()).map(({ args }) => command.exec(args)?.[1]);
    const config = commands.find((path) => path !== undefined);
    if (config !== undefined) {
      const directory = dirname(config);
      const [, secret = ''] = (await readFile(join(directory, 'secrets'), 'utf8'))
        .trim()
        .split(':');
      expect(secret.length).toBeGreaterThan(20);
      return { directory, secret };
    }
    expect(Date.now(), 'there is a daemon').toBeLessThan(deadlineMs);
  }
}

/** What must hold of every clone, wherever its own files are. */
function searchFor(more: SecretSearch['secrets'], directories: readonly string[]): SecretSearch {
  const { pgcloned, source } = product;
  const nowhereIn = [
    pgcloned.logFile,
    join(pgcloned.stateDirectory, 'runs'),
    redis.directory,
    source.sshd.logFile,
    source.primary.logFile,
  ];
  // A search where nothing is would find nothing.
  expect(nowhereIn.filter((path) => !existsSync(path))).toEqual([]);
  return {
    secrets: { 'database password': source.password, 'API token': pgcloned.token, ...more },
    nowhereIn,
    hiddenIn: [dirname(pgcloned.configFile), ...directories],
  };
}

/** All that the API and the command line say about clones, as one text. */
async function allAnswers(id: string): Promise<string> {
  const { pgcloned } = product;
  const paths = ['', `/${id}`, `/${id}/logs`].map((path) => `/v1/clones${path}`);
  const answers = await Promise.all(
    [...paths, '/v1/hosts', '/openapi.json', '/metrics'].map(async (path) => {
      const { headers, body } = await pgcloned.request('GET', path);
      return JSON.stringify([...headers, body]);
    }),
  );
  const events = await pgcloned.request('GET', `/v1/clones/${id}/events`, undefined, {
    accept: 'text/event-stream',
  });
  const shown = await product.cli(['clone', 'show', id]);
  const watched = await product.cli(['clone', 'watch', id, '--log-level', 'debug']);
  return [...answers, events.body, ...[shown, watched].map(({ stdout, stderr }) => stdout + stderr)]
    .map(String)
    .join('\n');
}

async function everythingInRedis(): Promise<string> {
  const cli = async (...args: string[]) =>
    (await runAsPartsUser(['redis-cli', '-s', redis.socket, ...args])).stdout.toString();
  const dump: string[] = [];
  for (const key of (await cli('KEYS', '*')).trim().split('\n')) {
    const type = (await cli('TYPE', key)).trim();
    const read = {
      string: ['GET', key],
      hash: ['HGETALL', key],
      list: ['LRANGE', key, '0', '-1'],
      set: ['SMEMBERS', key],
      zset: ['ZRANGE', key, '0', '-1'],
      stream: ['XRANGE', key, '-', '+'],
    }[type];
    expect(read, type).toBeDefined();
    dump.push(key, await cli(...(read ?? [])));
  }
  return dump.join('\n');
}

function expectNone(text: string, { secrets }: SecretSearch): void {
  expect(text.length).toBeGreaterThan(1_000);
  for (const [name, secret] of Object.entries(secrets))
    expect(text.includes(secret), name).toBe(false);
}

test('a clone that runs, streams and is watched shows no secret to anybody', async () => {
  const dataDirectory = product.at('shown', 'main');
  await using _ = { [Symbol.asyncDispose]: () => stopServer(dataDirectory) };
  await using early = watchForSecrets(searchFor({}, [product.at()]));
  const { id } = await product.create('shown', {
    transfer: SLOW,
    replica: { start: true, waitFor: 'streaming', port: await freePort(), slot: 'shown' },
  });
  const running = await product.until(id, ({ progress }) => progress.bytesDone > 500_000);
  const { directory, secret } = await rsyncSecretOf(running);
  const search = searchFor({ 'rsync secret': secret }, [product.at(), directory]);
  await using late = watchForSecrets(search);
  const waiting = product.cli(['clone', 'watch', id, '--progress', 'plain']);

  const clone = await product.ended(id);

  expect(clone.state).toBe('succeeded');
  expect((await waiting).status).toBe(0);
  expect(await early.stop()).toEqual([]);
  expect(await late.stop()).toEqual([]);
  expectNone(await allAnswers(id), search);
  expectNone(await everythingInRedis(), search);
  expect(await readFile(product.pgcloned.logFile, 'utf8')).toContain('"level":"debug"');
  await stopServer(dataDirectory);
  await product.source.primary.query("SELECT pg_drop_replication_slot('shown')");
});

test('a clone that fails by a wrong password shows neither that nor the right one', async () => {
  const { passFile, primary, password } = product.source;
  const line = (secret: string) => `127.0.0.1:${String(primary.port)}:*:cloner:${secret}\n`;
  await using _ = {
    [Symbol.asyncDispose]: async () => {
      await writePartsFile(passFile, line(password));
    },
  };
  await writePartsFile(passFile, line(WRONG_PASSWORD));
  const search = searchFor({ 'wrong password': WRONG_PASSWORD }, [product.at()]);
  await using watch = watchForSecrets(search);

  const { id } = await product.create('refused');
  const clone = await product.ended(id);

  expect(clone).toMatchObject({
    state: 'failed',
    phase: 'preflight',
    error: {
      code: 'SOURCE_AUTHENTICATION_FAILED',
      hint: expect.stringMatching(/passFile/),
    },
  });
  expect(await watch.stop()).toEqual([]);
  expectNone(await allAnswers(id), search);
  expectNone(await everythingInRedis(), search);
});

test('a clone that breaks off and begins again shows no secret', async () => {
  const { id } = await product.create('broken', { transfer: SLOW });
  const first = await product.until(id, ({ progress }) => progress.bytesDone > 500_000);
  const before = await rsyncSecretOf(first);

  await product.source.primary.query(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgcloned%'",
  );
  const second = await product.until(
    id,
    ({ attempt, phase }) => attempt === 2 && phase === 'copy-files',
  );
  const after = await rsyncSecretOf(second);
  const search = searchFor(
    { 'first rsync secret': before.secret, 'second rsync secret': after.secret },
    [product.at(), before.directory, after.directory],
  );
  await using watch = watchForSecrets(search);
  const clone = await product.ended(id);

  expect(clone).toMatchObject({ state: 'succeeded', attempt: 2 });
  expect(await watch.stop()).toEqual([]);
  expectNone(await allAnswers(id), search);
  expectNone(await everythingInRedis(), search);
});

test('a token that nobody knows is not written to the log', async () => {
  const token = randomBytes(32).toString('base64url');

  const answer = await product.pgcloned.request('GET', '/v1/clones', undefined, {
    authorization: `Bearer ${token}`,
  });

  expect(answer).toMatchObject({ status: 401, body: { code: 'UNAUTHENTICATED' } });
  const { logFile } = product.pgcloned;
  expect(await findSecrets({ secrets: { token }, nowhereIn: [logFile, redis.directory] })).toEqual(
    [],
  );
});
