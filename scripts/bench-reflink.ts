/**
 * How long a clone by reflinks takes on XFS, beside `cp -a --reflink=always` of the same tree, for clusters of several sizes
 * with as many files each: what is shared costs by the file and not by the byte. Needs root, to mount.
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import {
  adoptServer,
  leftBehind,
  makeDirectory,
  mountFilesystem,
  type Pgcloned,
  type PostgresServer,
  runAsPartsUser,
  scratchDirectory,
  startPgcloned,
  startPrimary,
  stopServer,
} from '@pgcloned/testbed';
import { freshTarget } from './bench-ground.ts';

/** Six files each, and a thousand are the system's own. */
const SMALL_TABLES = 1_500;
const ROWS_PER_SMALL_TABLE = 80;
const ROW = 'repeat(md5(g::text), 30)';
/** A row with its header, and its share of a page. */
const ROW_BYTES = 1_024;
/** Metadata, WAL, and what servers write. */
const FILESYSTEM_BYTES_MORE = 4e9;

export interface ReflinkFigures {
  readonly gigabytes: number;
  /** In the cluster, as the first clone counted them. */
  readonly files: number;
  readonly bytes: number;
  /** Of `cp -a --reflink=always`. */
  readonly copiesMs: readonly number[];
  readonly clones: readonly ReflinkTimes[];
}

export interface ReflinkTimes {
  /** From the POST until the clone, which was found by its connection string, had committed a write. */
  readonly totalMs: number;
  readonly phasesMs: ReadonlyMap<string, number>;
}

/** One size after the other, each on a filesystem of its own; copies and clones take turns. */
export async function measureReflink(o: {
  readonly sizesGigabytes: readonly number[];
  readonly rounds: number;
}): Promise<readonly ReflinkFigures[]> {
  const all: ReflinkFigures[] = [];
  for (const gigabytes of o.sizesGigabytes) all.push(await measureSize(gigabytes, o.rounds));
  return all;
}

export interface ManyFigures {
  readonly inARowMs: readonly number[];
  /** For each of those that were made at once. */
  readonly atOnceMs: readonly number[];
  /** What all of them have left when they were removed, one line each. */
  readonly left: readonly string[];
}

/** Clones of an empty cluster that are written to and removed again: some one after another, then some at once. */
export async function measureMany(o: {
  readonly inARow: number;
  readonly atOnce: number;
}): Promise<ManyFigures> {
  await using filesystem = await mountFilesystem({ type: 'xfs', bytes: FILESYSTEM_BYTES_MORE });
  await using primary = await startPrimary({ dataDirectory: join(filesystem.path, 'primary') });
  await using scratch = await scratchDirectory();
  const targets = join(filesystem.path, 'clones');
  await makeDirectory(targets);
  await using pgcloned = await startPgcloned(scratch.path, {
    worker: { dataRoots: [targets], concurrency: o.atOnce },
    sources: { bench: { local: true, dataDirectory: primary.dataDirectory } },
  });
  const once = async (name: string): Promise<number> => {
    const { id, totalMs } = await clone(pgcloned, join(targets, name));
    const removal = await pgcloned.request('DELETE', `/v1/clones/${id}?data=true`);
    if (removal.status !== 202) throw new Error(JSON.stringify(removal.body));
    for (let state = ''; state !== 'removed'; await delay(50))
      state = (await pgcloned.request('GET', `/v1/clones/${id}`)).body.instance.state;
    return totalMs;
  };

  console.log(`${String(o.inARow)} clones one after another, then ${String(o.atOnce)} at once …`);
  const inARowMs: number[] = [];
  for (let index = 0; index < o.inARow; index += 1) inARowMs.push(await once('in-a-row'));
  const atOnceMs = await Promise.all(
    Array.from({ length: o.atOnce }, async (_, index) => await once(`at-once-${String(index)}`)),
  );
  const left = await leftBehind({
    names: [targets],
    servers: [primary],
    directories: [filesystem.path, pgcloned.stateDirectory],
  });
  return { inARowMs, atOnceMs, left: [...left, ...(await readdir(targets))] };
}

async function measureSize(gigabytes: number, rounds: number): Promise<ReflinkFigures> {
  await using filesystem = await mountFilesystem({
    type: 'xfs',
    bytes: Math.ceil(gigabytes * 1.2e9 + FILESYSTEM_BYTES_MORE),
  });
  await using primary = await startPrimary({
    dataDirectory: join(filesystem.path, 'primary'),
    // autovacuum would write between the rounds, and old WAL would be copied along.
    settings: { fsync: 'on', autovacuum: 'off', shared_buffers: '128MB', max_wal_size: '256MB' },
  });
  await fill(primary, gigabytes);
  await using scratch = await scratchDirectory();
  const targets = join(filesystem.path, 'clones');
  await makeDirectory(targets);
  await using pgcloned = await startPgcloned(scratch.path, {
    worker: { dataRoots: [targets] },
    sources: { bench: { local: true, dataDirectory: primary.dataDirectory } },
  });

  const copiesMs: number[] = [];
  const clones: (ReflinkTimes & { readonly result: { files: number; bytes: number } })[] = [];
  for (let round = 1; round <= rounds; round += 1) {
    console.log(`${String(gigabytes)} GB, round ${String(round)} of ${String(rounds)} …`);
    // Neither needs room: what is shared is there once.
    copiesMs.push(await copy(primary, await freshTarget(targets, 0)));
    const target = await freshTarget(targets, 0);
    clones.push(await clone(pgcloned, target));
    await stopServer(target);
  }
  const { files = Number.NaN, bytes = Number.NaN } = clones[0]?.result ?? {};
  return { gigabytes, files, bytes, copiesMs, clones };
}

async function fill(primary: PostgresServer, gigabytes: number): Promise<void> {
  console.log(`Filling a cluster with ${String(gigabytes)} GB …`);
  await primary.query(`
    DO $$ BEGIN
      FOR i IN 1..${String(SMALL_TABLES)} LOOP
        EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, filler text)', i);
        EXECUTE format('INSERT INTO small_%s SELECT g, ${ROW.replaceAll("'", "''")}
                        FROM generate_series(1, ${String(ROWS_PER_SMALL_TABLE)}) g', i);
        IF i % 100 = 0 THEN COMMIT; END IF;
      END LOOP;
    END $$`);
  const rows = (gigabytes * 1e9) / ROW_BYTES - SMALL_TABLES * ROWS_PER_SMALL_TABLE;
  await primary.query(
    `CREATE TABLE large AS SELECT g, ${ROW} FROM generate_series(1, ${String(Math.round(rows))}) g`,
  );
  await primary.query('VACUUM');
  await primary.query('CHECKPOINT');
}

async function copy(primary: PostgresServer, target: string): Promise<number> {
  const startedAt = performance.now();
  await runAsPartsUser(['cp', '-a', '--reflink=always', primary.dataDirectory, target]);
  return performance.now() - startedAt;
}

async function clone(
  pgcloned: Pgcloned,
  target: string,
): Promise<
  ReflinkTimes & { readonly id: string; readonly result: { files: number; bytes: number } }
> {
  const startedAt = performance.now();
  const created = await pgcloned.request('POST', '/v1/clones', {
    source: { name: 'bench' },
    target: { host: 'testbed', dataDirectory: target },
    method: 'reflink',
    replica: { start: true, waitFor: 'writable' },
  });
  if (created.status !== 202) throw new Error(JSON.stringify(created.body));
  const path = `/v1/clones/${String(created.body.id)}`;
  let { body } = await pgcloned.request('GET', path);
  while (body.endedAt === null) {
    // Seldom enough not to take part of what is measured.
    await delay(50);
    ({ body } = await pgcloned.request('GET', path));
  }
  if (body.state !== 'succeeded') throw new Error(JSON.stringify(body.error));
  const server = await adoptServer(target);
  await server.query('CREATE TABLE written_by_bench AS SELECT 1');
  const totalMs = performance.now() - startedAt;
  const phases = body.progress.phases as readonly {
    readonly name: string;
    readonly startedAt: string;
    readonly endedAt: string;
  }[];
  return {
    id: body.id,
    totalMs,
    phasesMs: new Map(
      phases.map((phase) => [phase.name, Date.parse(phase.endedAt) - Date.parse(phase.startedAt)]),
    ),
    result: body.result,
  };
}
