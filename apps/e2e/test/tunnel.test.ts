/**
 * A primary that listens on its own loopback only, cloned from another host: SQL, the pin and WAL go through SSH.
 *
 * Takes root, for the other host.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  compareTables,
  descendantsOf,
  findDamage,
  installAmcheck,
  leftBehind,
  listProcesses,
  type OtherHost,
  otherHost,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startCluster,
  startSource,
  startWriteLoad,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Running, runClone, startClone } from './run-clone.ts';

const owned = new AsyncDisposableStack();
let source: Source;
let host: OtherHost;
let directory = '';

afterAll(async () => {
  await owned.disposeAsync();
});

describe.skipIf(!runsAsRoot)('a primary whose port is closed', () => {
  beforeAll(async () => {
    host = owned.use(await otherHost());
    source = owned.use(
      await startSource({ listen: '127.0.0.1', settings: { wal_keep_size: '4GB' } }, host),
    );
    directory = owned.use(await scratchDirectory()).path;
  });

  const specOf = (name: string, more: object = {}) => ({
    source: { ssh: { ...source.configuration.ssh, tunnelDatabase: true } },
    target: { dataDirectory: join(directory, name) },
    ...more,
  });

  test('is cloned through SSH with pin and WAL, goes on after SSH was lost, and nothing is left', async () => {
    const slow = { transfer: { maxRate: 6_000_000, workers: 2 } };
    const clone = await startClone(source, specOf('through', slow), { on: host.on });
    await clone.copied(0.2);
    const socketDirectory = await socketDirectoryOf(clone);
    const pins = await source.primary.query(
      "SELECT FROM pg_replication_slots WHERE slot_name ^@ 'pgcloned' AND temporary",
    );

    await source.sshd.kill();
    await clone.said(/attempt 2/);
    await source.sshd.start();
    const ended = await clone.ended;

    expect(ended.stderr).toBe('');
    expect(ended.status).toBe(0);
    expect(pins).toHaveLength(1);
    expect(socketDirectory).not.toBe('');
    expect(ended.result.result.keptBytes).toBeGreaterThan(0);
    expect(ended.result.result.warnings.join('\n')).toMatch(
      /the replica cannot reach .* from here/,
    );
    expect(await readFile(join(directory, 'through/postgresql.auto.conf'), 'utf8')).toContain(
      `primary_conninfo = 'host=${host.address} port=`,
    );
    const left = { names: [ended.name], servers: [source.primary], directories: [directory] };
    expect(await leftBehind(left)).toEqual([]);
    await expect(readFile(socketDirectory)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('is cloned over SSH alone, files and all, while it is written to as fast as it can', async () => {
    const { primary } = source;
    await installAmcheck(primary);
    await using load = await startWriteLoad(primary, { transactionsPerSecond: 10_000, pauseMs: 0 });
    const transfer = { transport: 'ssh', maxRate: 15_000_000, workers: 2 };

    const ended = await runClone(source, specOf('written to', { transfer }), { on: host.on });

    await load.stop();
    expect(ended.stderr).toBe('');
    expect(ended.result.leftovers).toEqual([]);
    expect(ended.result.result.verification).toMatchObject({ wal: 'passed', pages: 'passed' });
    // For it lies on this host, where the port is not closed.
    const { socketDirectory, port } = primary;
    const conninfo = `host=${socketDirectory} port=${String(port)} user=postgres`;
    await using replica = await startCluster(join(directory, 'written to'), {
      settings: { primary_conninfo: conninfo },
    });
    await waitForReplay(primary, replica);
    expect(await compareTables(primary, replica)).toEqual([]);
    expect(await findDamage(replica)).toBe('');
    const left = { names: [ended.name], servers: [primary], directories: [directory] };
    expect(await leftBehind(left)).toEqual([]);
  });

  test('is refused if the replica is to stream, since it could not', async () => {
    const replica = { start: true, waitFor: 'streaming' };

    const ended = await runClone(source, specOf('streaming', { replica }), { on: host.on });

    expect(ended.error).toMatchObject({
      code: 'SOURCE_UNREACHABLE',
      message: `the replica could not stream from ${host.address}:${String(source.primary.port)}`,
      phase: 'preflight',
    });
  });
});

/** Where its pg_receivewal connects to. */
async function socketDirectoryOf(clone: Running): Promise<string> {
  const child = descendantsOf(clone.process.pid, await listProcesses()).find(({ args }) =>
    args.includes('pg_receivewal'),
  );
  const environment = await readFile(`/proc/${String(child?.pid)}/environ`, 'utf8');
  return /(?:^|\0)PGHOST=([^\0]*)/.exec(environment)?.[1] ?? '';
}
