import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { finished } from 'node:stream/promises';
import { type OtherHost, otherHost, type Source, startSource } from '@pgcloned/testbed';
import { fillCluster } from './bench-cluster.ts';
import { freshTarget } from './bench-ground.ts';
import { bareRsyncs } from './bench-rsyncs.ts';
import { resultOf, runThere, startRun } from './clone-on-host.ts';

const MEGABITS_PER_SECOND = 1000;
const STREAM_BYTES = 500_000_000;
const COMPRESS = ['--compress', '--compress-choice=zstd', '--compress-level=1'];
const CHUNK = Buffer.alloc(2 ** 20, 1);

const TRANSPORTS = ['rsyncd', 'ssh'] as const;
/** By what they are called: what is sent, and whether pages are checked. */
const WAYS = {
  none: { compression: 'none', pages: false },
  auto: { compression: 'auto', pages: false },
  'auto, pages checked': { compression: 'auto', pages: true },
} as const;

export interface NetworkRun {
  readonly totalMs: number;
  /** Over the cable, both ways. */
  readonly carriedBytes: number;
  /** Of a clone only. */
  readonly clone: {
    readonly bytes: number;
    readonly durationMs: number;
    readonly copyMs: number;
    /** What it was compressed with. */
    readonly compression: string;
  } | null;
}

export interface NetworkFigures {
  readonly streamBytesPerSecond: readonly number[];
  readonly baseBackups: readonly NetworkRun[];
  readonly compressedBaseBackups: readonly NetworkRun[];
  /** With zstd. */
  readonly rsyncs: readonly NetworkRun[];
  /** By transport and way: `rsyncd none`. */
  readonly clones: ReadonlyMap<string, readonly NetworkRun[]>;
}

export async function measureNetwork(o: {
  readonly directory: string;
  readonly gigabytes: number;
  readonly rounds: number;
  readonly workers: number;
}): Promise<NetworkFigures> {
  await using host = await otherHost({ megabitsPerSecond: MEGABITS_PER_SECOND });
  await using source = await startSource(
    { settings: { fsync: 'on', max_wal_size: '8GB', autovacuum: 'off', shared_buffers: '128MB' } },
    host,
  );
  await fillCluster(source.primary, o.gigabytes);

  const measured = async (
    run: (target: string) => Promise<NetworkRun['clone']>,
  ): Promise<NetworkRun> => {
    const target = await freshTarget(o.directory, o.gigabytes);
    const carriedBefore = await host.carriedBytes();
    const startedAt = performance.now();
    const clone = await run(target);
    const totalMs = clone?.durationMs ?? performance.now() - startedAt;
    const carriedBytes = (await host.carriedBytes()) - carriedBefore;
    return { totalMs, carriedBytes, clone };
  };
  const streamBytesPerSecond: number[] = [];
  const baseBackups: NetworkRun[] = [];
  const compressedBaseBackups: NetworkRun[] = [];
  const rsyncs: NetworkRun[] = [];
  const clones = new Map<string, NetworkRun[]>();
  for (let round = 1; round <= o.rounds; round += 1) {
    console.log(`Round ${String(round)} of ${String(o.rounds)} …`);
    streamBytesPerSecond.push(await bulkStream(host));
    baseBackups.push(await measured(async (target) => await baseBackup(host, source, target, [])));
    for (const transport of TRANSPORTS)
      for (const [way, { compression, pages }] of Object.entries(WAYS)) {
        const name = `${transport} ${way}`;
        const run = await measured(
          async (target) =>
            await clone(host, source, target, {
              transfer: { workers: o.workers, transport, compression },
              verification: { pages },
            }),
        );
        clones.set(name, [...(clones.get(name) ?? []), run]);
      }
    compressedBaseBackups.push(
      await measured(
        async (target) => await baseBackup(host, source, target, ['--compress=server-zstd:1']),
      ),
    );
    rsyncs.push(
      await measured(async (target) => {
        await bareRsyncs(source, { target, workers: o.workers, host, options: COMPRESS });
        return null;
      }),
    );
  }
  return { streamBytesPerSecond, baseBackups, compressedBaseBackups, rsyncs, clones };
}

/** What one TCP stream brings to the other host, from its first byte to its last. */
async function bulkStream(host: OtherHost): Promise<number> {
  const server = createServer((socket) => {
    void pour(socket);
  });
  server.listen({ host: host.address, port: 0 });
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const receiver = `
    let firstAt = 0, bytes = 0;
    const socket = require('node:net').connect(${String(port)}, '${host.address}');
    socket.on('data', (chunk) => { firstAt ||= performance.now(); bytes += chunk.length; });
    socket.on('end', () => console.log(bytes / (performance.now() - firstAt) * 1000));`;
  try {
    return Number(await runThere(host, [process.execPath, '--eval', receiver]));
  } finally {
    server.close();
  }
}

async function pour(socket: Socket): Promise<void> {
  for (let sent = 0; sent < STREAM_BYTES; sent += CHUNK.length)
    if (!socket.write(CHUNK)) await once(socket, 'drain');
  socket.end();
  await finished(socket.resume());
}

async function baseBackup(
  host: OtherHost,
  { primary, passFile, configuration }: Source,
  target: string,
  options: readonly string[],
): Promise<null> {
  await runThere(
    host,
    [
      ...[join(primary.binDirectory, 'pg_basebackup'), '-D', target, '-X', 'stream', '-c', 'fast'],
      '--no-verify-checksums',
      ...['-h', configuration.host, '-p', String(configuration.port), '-U', configuration.user],
      ...options,
    ],
    { PGPASSFILE: passFile },
  );
  return null;
}

async function clone(
  host: OtherHost,
  { configuration }: Source,
  target: string,
  how: object,
): Promise<NonNullable<NetworkRun['clone']>> {
  const run = await startRun(host, `${target}.json`, {
    source: configuration,
    target: { dataDirectory: target },
    ...how,
  });
  const said = await run.ended;
  const { bytes, durationMs, compression } = resultOf(said);
  return { bytes, durationMs, compression: compression ?? 'nothing', copyMs: copyMsOf(said) };
}

/** How long the phase lasted, by the last thing that was said about it. */
function copyMsOf(said: string): number {
  const phases = said
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line).progress?.phases)
    .findLast((one) => one !== undefined);
  const copy = phases?.find(({ name }: { readonly name: string }) => name === 'copy-files');
  return Date.parse(copy?.endedAt) - Date.parse(copy?.startedAt);
}
