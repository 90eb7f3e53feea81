/**
 * `npm run bench`: how long a clone takes, beside what else copies a cluster on the same machine in the same run, how well
 * it uses a link of 1 Gbit/s, what an interruption costs, and how long a clone by reflinks takes.
 *
 * Ratios count, never times: here everything shares the machine's cores, disk and page cache. Rounds alternate between the
 * contestants, each ends on disk (fsync or syncfs), and the disk is idle before each begins.
 */
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import {
  freePort,
  makeDirectory,
  type Pgcloned,
  runAsPartsUser,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startPgcloned,
  startSource,
  stopServer,
} from '@pgcloned/testbed';
import { fillCluster } from './bench-cluster.ts';
import { freshTarget } from './bench-ground.ts';
import { measureNetwork, type NetworkFigures } from './bench-network.ts';
import {
  type ManyFigures,
  measureMany,
  measureReflink,
  type ReflinkFigures,
} from './bench-reflink.ts';
import { measureResume, type ResumeFigures } from './bench-resume.ts';
import { bareRsyncs, type RsyncTimes } from './bench-rsyncs.ts';

/** Whoever asks more often takes the cores that he measures. */
const POLL_MS = 250;

const WORKERS = Math.min(availableParallelism(), 8);

const { values: options } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    /**
     * Of the cluster; half of them in one table, half in small ones. Default: 3.5, 2 for what an interruption costs, and 4
     * for reflinks, which also clone a quarter of it.
     */
    gigabytes: { type: 'string' },
    /**
     * `speed`: beside what else copies a cluster; `network`: over 1 Gbit/s, as root; `resume`: what an interruption costs,
     * as root; `reflink`: clones by reflinks, as root. Default: all of them.
     */
    only: { type: 'string', default: '' },
  },
});
const rounds = Number(options.rounds);
const gigabytes = Number(options.gigabytes ?? 3.5);

interface CloneTimes {
  /** From the POST until it had succeeded. */
  readonly totalMs: number;
  /** From the POST until the files were published. */
  readonly publishedMs: number;
  readonly phasesMs: ReadonlyMap<string, number>;
}

await using scratch = await scratchDirectory();
const replicas = join(scratch.path, 'replicas');
await makeDirectory(replicas);
const baseBackups: number[] = [];
const clones: CloneTimes[] = [];
const rsyncs: RsyncTimes[] = [];
const starts: CloneTimes[] = [];
/** What needs root is left out without it, unless it was asked for by name. */
const isWanted = (name: string) => options.only === name || (options.only === '' && runsAsRoot);
if (options.only === '' || options.only === 'speed') await measureSpeed();
if (isWanted('network'))
  reportNetwork(
    // Each waits for the link now and then, and then there are cores for others.
    await measureNetwork({ directory: replicas, gigabytes, rounds, workers: 2 * WORKERS }),
  );
if (isWanted('resume'))
  reportResume(
    await measureResume({
      directory: replicas,
      gigabytes: Number(options.gigabytes ?? 2),
      workers: WORKERS,
    }),
  );
if (isWanted('reflink')) {
  const largest = Number(options.gigabytes ?? 4);
  reportReflink(await measureReflink({ sizesGigabytes: [largest / 4, largest], rounds }));
  reportMany(await measureMany({ inARow: 100, atOnce: 10 }));
}

async function measureSpeed(): Promise<void> {
  console.log(`Filling a cluster with ${String(gigabytes)} GB …`);
  await using big = await startSource({
    // autovacuum would write between the rounds.
    settings: { fsync: 'on', max_wal_size: '8GB', autovacuum: 'off', shared_buffers: '128MB' },
  });
  await fillCluster(big.primary, gigabytes);
  await using empty = await startSource({ settings: { fsync: 'on' } });
  await using pgcloned = await startPgcloned(scratch.path, {
    worker: { dataRoots: [replicas] },
    sources: { big: big.configuration, empty: empty.configuration },
  });

  for (let round = 1; round <= rounds; round += 1) {
    console.log(`Round ${String(round)} of ${String(rounds)} …`);
    baseBackups.push(await settled((target) => baseBackup(big, target)));
    clones.push(
      await settled((target) => clone(pgcloned, { source: 'big', target, start: false })),
    );
    rsyncs.push(
      await settled((target) =>
        bareRsyncs(big, { target, workers: WORKERS, host: null, options: [] }),
      ),
    );
  }
  for (let round = 1; round <= rounds; round += 1) {
    starts.push(
      await settled((target) => clone(pgcloned, { source: 'empty', target, start: true })),
    );
  }
  report();
}

/** Runs one contestant into a new directory. */
async function settled<Times>(run: (target: string) => Promise<Times>): Promise<Times> {
  const target = await freshTarget(replicas, gigabytes);
  try {
    return await run(target);
  } finally {
    await stopServer(target);
  }
}

async function baseBackup({ primary, passFile, configuration }: Source, target: string) {
  const { host, port, user } = configuration;
  const startedAt = performance.now();
  await runAsPartsUser(
    [
      ...[join(primary.binDirectory, 'pg_basebackup'), '-D', target, '-X', 'stream', '-c', 'fast'],
      ...['-h', host, '-p', String(port), '-U', user],
    ],
    { env: { PGPASSFILE: passFile } },
  );
  return performance.now() - startedAt;
}

async function clone(
  api: Pgcloned,
  o: { readonly source: string; readonly target: string; readonly start: boolean },
): Promise<CloneTimes> {
  const startedAt = Date.now();
  const created = await api.request('POST', '/v1/clones', {
    source: { name: o.source },
    target: { host: 'testbed', dataDirectory: o.target },
    transfer: { workers: WORKERS },
    replica: o.start
      ? { start: true, waitFor: 'streaming', port: await freePort() }
      : { waitFor: 'files' },
  });
  if (created.status !== 202) throw new Error(JSON.stringify(created.body));
  const path = `/v1/clones/${String(created.body.id)}`;
  let { body } = await api.request('GET', path);
  while (body.endedAt === null) {
    await delay(POLL_MS);
    ({ body } = await api.request('GET', path));
  }
  if (body.state !== 'succeeded') throw new Error(JSON.stringify(body.error));
  const phases = body.progress.phases as readonly {
    readonly name: string;
    readonly startedAt: string;
    readonly endedAt: string;
  }[];
  const published = phases.find(({ name }) => name === 'publish');
  return {
    totalMs: Date.parse(String(body.endedAt)) - startedAt,
    publishedMs: Date.parse(published?.endedAt ?? '') - startedAt,
    phasesMs: new Map(
      phases.map(({ name, startedAt, endedAt }) => [
        name,
        Date.parse(endedAt) - Date.parse(startedAt),
      ]),
    ),
  };
}

function report(): void {
  const totals = clones.map(({ totalMs }) => totalMs);
  const copies = clones.map(({ phasesMs }) => phasesMs.get('copy-files') ?? Number.NaN);
  const bareCopies = rsyncs.map(({ copyMs }) => copyMs);
  console.log('\nSeconds: median, and each round');
  line('pg_basebackup', baseBackups);
  line('bare rsyncs, copy', bareCopies);
  line(
    'bare rsyncs, with the last sync',
    rsyncs.map(({ totalMs }) => totalMs),
  );
  line('pgcloned', totals);
  phaseLines(clones);
  line(
    'empty cluster, published',
    starts.map(({ publishedMs }) => publishedMs),
  );
  line(
    'empty cluster, streaming',
    starts.map(({ totalMs }) => totalMs),
  );
  phaseLines(starts);
  console.log('');
  verdict('pgcloned / pg_basebackup', median(totals) / median(baseBackups), 0.95);
  verdict('copy-files / bare rsyncs', median(copies) / median(bareCopies), 1.05);
  verdict(
    'empty cluster: seconds to published',
    median(starts.map((run) => run.publishedMs)) / 1000,
    1.5,
  );
  verdict(
    'empty cluster: seconds to streaming',
    median(starts.map((run) => run.totalMs)) / 1000,
    3,
  );
}

function reportNetwork(figures: NetworkFigures): void {
  const { streamBytesPerSecond, baseBackups, compressedBaseBackups, rsyncs, clones } = figures;
  const times = (runs: readonly { readonly totalMs: number }[]) =>
    runs.map(({ totalMs }) => totalMs);
  console.log('\nOver 1 Gbit/s, no pages checked; seconds: median, and each round');
  line('pg_basebackup', times(baseBackups));
  line('pg_basebackup, server-zstd:1', times(compressedBaseBackups));
  line('bare rsyncs, zstd', times(rsyncs));
  for (const [name, runs] of clones) {
    line(`pgcloned, ${name}`, times(runs));
    line(
      '  copy-files',
      runs.map((run) => run.clone?.copyMs ?? Number.NaN),
    );
    console.log(`  picked ${runs.map((run) => run.clone?.compression ?? '').join(', ')}`);
  }
  const clusterBytes = [...clones.values()][0]?.[0]?.clone?.bytes ?? Number.NaN;
  console.log(`\nOver the cable, as a share of the ${(clusterBytes / 1e9).toFixed(2)} GB`);
  const carried = {
    pg_basebackup: baseBackups,
    'pg_basebackup, server-zstd:1': compressedBaseBackups,
    'bare rsyncs, zstd': rsyncs,
  };
  for (const [name, runs] of [...Object.entries(carried), ...clones])
    console.log(
      `${name.padEnd(36)}${(median(runs.map((run) => run.carriedBytes)) / clusterBytes).toFixed(3).padStart(8)}`,
    );
  const wire = median(streamBytesPerSecond);
  console.log(`\nA TCP stream brings ${(wire / 1e6).toFixed(1)} MB/s`);
  const baseBackupMs = median(times(compressedBaseBackups));
  for (const transport of ['rsyncd', 'ssh']) {
    const plain = clones.get(`${transport} none`) ?? [];
    const copySeconds = median(plain.map((run) => run.clone?.copyMs ?? Number.NaN)) / 1000;
    const totalSeconds = median(times(plain)) / 1000;
    verdict(
      `${transport}: copy-files / the wire`,
      clusterBytes / copySeconds / wire,
      0.97,
      'least',
    );
    console.log(
      `${'  the whole clone / the wire'.padEnd(36)}${(clusterBytes / totalSeconds / wire).toFixed(2).padStart(8)}`,
    );
    const auto = median(times(clones.get(`${transport} auto`) ?? []));
    verdict(`${transport}: auto / server-zstd:1`, auto / baseBackupMs, 0.6);
    console.log(
      `${'  auto / bare rsyncs, zstd'.padEnd(36)}${(auto / median(times(rsyncs))).toFixed(2).padStart(8)}`,
    );
  }
}

function reportResume(figures: ResumeFigures): void {
  const { full, resynced, resumed, shareAgain, batchesAgain } = figures;
  console.log('\nSeconds');
  line('full clone', [full.durationMs]);
  line('resync of a standby', [resynced.durationMs]);
  line('clone killed at 90 %, resumed', [resumed.durationMs]);
  console.log('\nMegabytes over the cable');
  const moved = {
    'full clone': full,
    'resync of a standby': resynced,
    'second try of a killed one, 10 % left': resumed,
  };
  for (const [name, { bytes }] of Object.entries(moved)) {
    const share = ((100 * bytes) / full.bytes).toFixed(1).padStart(6);
    console.log(
      `${name.padEnd(36)}${(bytes / 1e6).toFixed(2).padStart(8)}  ${share} % of a full clone`,
    );
  }
  console.log('');
  verdict('killed at 90 %: moved twice', shareAgain, 0.12);
  verdict('rsyncd killed: batches per worker', batchesAgain.daemonKilled, 1);
  verdict('one rsync killed: batches again', batchesAgain.rsyncKilled, 1);
  verdict('5 % missed: resync / full clone', resynced.bytes / full.bytes, 0.25);
}

function reportReflink(sizes: readonly ReflinkFigures[]): void {
  console.log('\nReflinks on XFS; seconds: median, and each round');
  for (const { bytes, files, copiesMs, clones } of sizes) {
    console.log(`${(bytes / 1e9).toFixed(2)} GB in ${String(files)} files`);
    line('cp -a --reflink=always', copiesMs);
    line(
      'pgcloned, POST to a committed write',
      clones.map(({ totalMs }) => totalMs),
    );
    phaseLines(clones);
  }
  console.log('');
  for (const { bytes, copiesMs, clones } of sizes) {
    const size = `${(bytes / 1e9).toFixed(1)} GB`;
    const copyFilesMs = clones.map(({ phasesMs }) => phasesMs.get('copy-files') ?? Number.NaN);
    verdict(`${size}: copy-files / cp`, median(copyFilesMs) / median(copiesMs), 1.2);
    const totals = clones.map(({ totalMs }) => totalMs);
    verdict(`${size}: seconds to a write`, median(totals) / 1000, 3);
  }
  const [small, large] = sizes.map(({ clones }) => median(clones.map((run) => run.totalMs)));
  verdict('four times the bytes: time / time', (large ?? 0) / (small ?? 0), 1.25);
}

function reportMany({ inARowMs, atOnceMs, left }: ManyFigures): void {
  console.log(
    '\nClones of an empty cluster, POST to a committed write; seconds: median, and the slowest',
  );
  const slowest = (name: string, timesMs: readonly number[]) => {
    console.log(
      `${name.padEnd(36)}${[median(timesMs), Math.max(...timesMs)].map((ms) => (ms / 1000).toFixed(2).padStart(8)).join('')}`,
    );
  };
  slowest(`${String(inARowMs.length)} one after another`, inARowMs);
  slowest(`${String(atOnceMs.length)} at once`, atOnceMs);
  for (const line of left) console.log(`left behind: ${line}`);
  verdict('left behind', left.length, 0);
}

function phaseLines(runs: readonly Pick<CloneTimes, 'phasesMs'>[]): void {
  for (const name of runs[0]?.phasesMs.keys() ?? []) {
    line(
      `  ${name}`,
      runs.map(({ phasesMs }) => phasesMs.get(name) ?? Number.NaN),
    );
  }
}

function line(name: string, timesMs: readonly number[]): void {
  const seconds = (ms: number) => (ms / 1000).toFixed(2).padStart(8);
  console.log(`${name.padEnd(36)}${seconds(median(timesMs))}  ${timesMs.map(seconds).join('')}`);
}

function verdict(
  name: string,
  value: number,
  limit: number,
  bound: 'most' | 'least' = 'most',
): void {
  const isMet = bound === 'most' ? value <= limit : value >= limit;
  console.log(
    `${name.padEnd(36)}${value.toFixed(2).padStart(8)}   at ${bound} ${limit.toFixed(2)}: ${isMet ? 'met' : 'MISSED'}`,
  );
  if (!isMet) process.exitCode = 1;
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? Number.NaN)) / 2;
}
