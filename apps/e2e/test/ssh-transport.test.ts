/**
 * Files that come over SSH: no port, no secret, no file of ours on the source, and the same clone.
 */
import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  adoptServer,
  compareTables,
  descendantsOf,
  freePort,
  leftBehind,
  listProcesses,
  otherHost,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startSource,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Ended, type Running, runClone, startClone } from './run-clone.ts';

const OVER_SSH = { transport: 'ssh', workers: 2 };
/** A cluster of 30 MB takes some seconds at this rate. */
const SLOW = { ...OVER_SSH, maxRate: 8_000_000 };

const owned = new AsyncDisposableStack();
let source: Source;
let directory = '';

beforeAll(async () => {
  directory = owned.use(await scratchDirectory()).path;
  source = owned.use(await startSource());
  await source.primary.createTablespace('odd', oddPath());
  await source.primary.query(
    "CREATE TABLE rows TABLESPACE odd AS SELECT i, repeat('x', 400) FROM generate_series(1, 20000) i",
  );
});

afterAll(async () => {
  await owned.disposeAsync();
});

/** PostgreSQL takes no single quote there. */
const oddPath = () => join(directory, '-n 100% "mad"; $(touch x) * #');

const specOf = (name: string, transfer: object) => ({
  target: {
    dataDirectory: join(directory, name, 'main'),
    tablespaces: { [oddPath()]: join(directory, name, 'odd') },
  },
  transfer,
});

async function expectNothingLeft({ name }: Ended, home: string, pidsKept: readonly number[] = []) {
  const servers = [source.primary];
  const directories = [directory, join(directory, home)];
  expect(await leftBehind({ names: [name], servers, directories, pidsKept })).toEqual([]);
  expect((await bulkProcesses()).map(({ args }) => args)).toEqual([]);
}

/** Of either side: what only this transport has. */
async function bulkProcesses() {
  const ofSource = descendantsOf(source.sshd.pid, await listProcesses());
  const senders = ofSource.filter(({ args }) => args.startsWith('rsync'));
  const clients = (await listProcesses()).filter(
    ({ args }) => args.startsWith('ssh ') && args.includes(` -p ${String(source.sshd.port)} `),
  );
  return [...senders, ...clients];
}

/** Inodes of the TCP sockets on which anything that SSH has started on the source listens. */
async function listenersOnSource(): Promise<readonly string[]> {
  const tables = await Promise.all(
    ['tcp', 'tcp6'].map(async (one) => await readFile(`/proc/net/${one}`, 'utf8')),
  );
  const LISTEN = '0A';
  const listening = new Set(
    tables
      .flatMap((table) => table.split('\n').map((line) => line.trim().split(/\s+/)))
      .filter((fields) => fields[3] === LISTEN)
      .map((fields) => `socket:[${fields[9] ?? ''}]`),
  );
  const found: string[] = [];
  for (const { pid } of descendantsOf(source.sshd.pid, await listProcesses())) {
    const fds = await readdir(`/proc/${String(pid)}/fd`).catch(() => []);
    for (const fd of fds)
      found.push(await readlink(`/proc/${String(pid)}/fd/${fd}`).catch(() => ''));
  }
  return found.filter((link) => listening.has(link));
}

async function untilFilesCome(clone: Running): Promise<void> {
  await clone.reached('copy-files');
  await clone.copied(0.1);
}

test('a clone is equal, also below an odd path, and needs neither port nor secret on the source', async () => {
  const port = await freePort();
  const clone = await startClone(source, {
    ...specOf('equal', SLOW),
    replica: { start: true, waitFor: 'streaming', port },
  });
  await untilFilesCome(clone);
  const processes = await listProcesses();
  const senders = descendantsOf(source.sshd.pid, processes).filter(({ args }) =>
    args.startsWith('rsync'),
  );
  expect(senders.length).toBeGreaterThan(0);
  expect(await listenersOnSource()).toEqual([]);
  const commands = processes.map(({ args }) => args).join('\n');
  expect(commands).not.toMatch(new RegExp(`rsync --daemon.*${clone.name()}`));
  expect(commands).not.toContain(source.password);
  const inTemporary = await readdir('/tmp');
  expect(inTemporary.filter((name) => name.includes(clone.name()))).toEqual([]);

  const ended = await clone.ended;

  expect(ended.error).toBeUndefined();
  const { bytes, wireBytes, durationMs } = ended.result.result;
  expect(wireBytes).toBeGreaterThan(bytes * 0.98);
  expect(wireBytes).toBeLessThan(bytes * 1.05);
  expect((wireBytes / durationMs) * 1000).toBeLessThan(SLOW.maxRate * 1.1);
  await using standby = await adoptServer(join(directory, 'equal', 'main'));
  await waitForReplay(source.primary, standby);
  expect(await compareTables(source.primary, standby)).toEqual([]);
  await expectNothingLeft(ended, 'equal', [standby.pid]);
});

test('the loss of every connection costs no attempt, and what is complete is not sent again', async () => {
  const clone = await startClone(source, specOf('cut', SLOW));
  await clone.copied(0.2);
  await source.sshd.kill();
  await clone.said(/the way to the files was lost/);
  // Longer than the first pause.
  await delay(1_000);
  await source.sshd.start();

  const ended = await clone.ended;

  expect(ended.error).toBeUndefined();
  expect(ended.messages.join()).not.toMatch('attempt 2');
  const { bytes, wireBytes, keptBytes } = ended.result.result;
  expect(wireBytes).toBeLessThan(bytes * 1.2);
  // Nothing was here before it began.
  expect(keptBytes).toBe(0);
  await expectNothingLeft(ended, 'cut');
});

test('an ssh client that is killed costs one batch', async () => {
  const clone = await startClone(source, specOf('killed', SLOW));
  await untilFilesCome(clone);
  const masters = descendantsOf(clone.process.pid, await listProcesses()).filter(({ args }) =>
    /^ssh .* -N /.test(args),
  );
  expect(masters).toHaveLength(2);
  process.kill(masters[0]?.pid ?? 0, 'SIGKILL');

  const ended = await clone.ended;

  expect(ended.error).toBeUndefined();
  expect(ended.messages.join()).toMatch('sent again');
  expect(ended.messages.join()).not.toMatch('the way to the files was lost');
  await expectNothingLeft(ended, 'killed');
});

test('kill -9 ends everything on both sides, and the next clone goes on', async () => {
  const killed = await startClone(source, specOf('resumed', SLOW));
  await killed.copied(0.5);
  process.kill(killed.process.pid, 'SIGKILL');
  await killed.ended;
  while ((await bulkProcesses()).length > 0) await delay(50);

  const ended = await runClone(source, specOf('resumed', OVER_SSH));

  expect(ended.error).toBeUndefined();
  expect(ended.result.result.keptBytes).toBeGreaterThan(1_000_000);
  await expectNothingLeft(ended, 'resumed');
});

test('a cable that is cut without a word (as root): the stall is noticed, and once it is mended the clone goes on', {
  skip: !runsAsRoot,
}, async () => {
  await using host = await otherHost();
  await using far = await startSource({}, host);
  const ofSshd = async () => descendantsOf(far.sshd.pid, await listProcesses());
  const clone = await startClone(
    far,
    { target: { dataDirectory: join(directory, 'cable/main') }, transfer: SLOW },
    { on: host.on, env: { PGCLONED_WORKER_STALL_SECONDS: '3' } },
  );
  await clone.copied(0.2);
  expect((await ofSshd()).some(({ args }) => args.startsWith('rsync --server'))).toBe(true);

  await host.cut();
  await clone.said(/a batch broke off and is sent again/);
  await host.mend();
  const ended = await clone.ended;

  expect(ended.error).toBeUndefined();
  // Shorter than the backup session lives without us.
  expect(ended.messages.join()).not.toMatch('attempt 2');
  const { bytes, wireBytes } = ended.result.result;
  expect(wireBytes).toBeLessThan(bytes * 1.3);
  // Whoever still waited over there for a connection that we had given up is told so by our kernel.
  while ((await ofSshd()).length > 0) await delay(50);
  const left = { names: [ended.name], servers: [far.primary], directories: [directory] };
  expect(await leftBehind(left)).toEqual([]);
});
