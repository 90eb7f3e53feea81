/**
 * How much of a killed clone crosses the wire again, and how long that takes beside a fresh clone.
 *
 * The count is the clone's own, which is exact where no transfer breaks off. Those that do are measured on a small cluster by
 * `apps/e2e/test/resume-figures.test.ts`: it counts what a cable carries.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import {
  asPartsUser,
  createScattered,
  PGCLONED,
  partsEnvironment,
  type Source,
  startSource,
  writePartsFile,
  writeScattered,
} from '@pgcloned/testbed';

const WRITTEN_SHARE = 0.02;
/** Slow enough that an interruption comes where it is meant to. */
const MAX_RATE = 100_000_000;
const POLL_MS = 10;

interface CloneFigures {
  readonly bytes: number;
  readonly wireBytes: number;
  readonly durationMs: number;
}

export interface ResumeFigures {
  readonly fresh: CloneFigures;
  /** After kill -9 at 90 %, with 2 % of the pages written. */
  readonly resumed: CloneFigures;
}

export async function measureResume(o: {
  readonly directory: string;
  readonly gigabytes: number;
  readonly workers: number;
}): Promise<ResumeFigures> {
  await using source = await startSource({
    settings: { fsync: 'on', max_wal_size: '8GB', autovacuum: 'off', shared_buffers: '128MB' },
  });
  const smallMegabytes = 50;
  const small = Math.ceil((o.gigabytes * 1000) / 2 / smallMegabytes);
  await createScattered(source.primary, [
    (o.gigabytes * 1000) / 2,
    ...Array.from({ length: small }, () => smallMegabytes),
  ]);
  const start = async (name: string, maxRate: number | null) =>
    await startRun(source, { ...o, home: join(o.directory, name), maxRate });

  const fresh = await resultOf(await start('fresh', null));

  const killed = await start('killed', MAX_RATE);
  await arrived(killed.child, join(o.directory, 'killed'), 0.9 * fresh.bytes);
  killed.child.kill('SIGKILL');
  await killed.output;
  await writeScattered(source.primary, WRITTEN_SHARE);
  const resumed = await resultOf(await start('killed', null));
  return { fresh, resumed };
}

interface Run {
  readonly child: ChildProcess;
  readonly output: Promise<string>;
}

async function startRun(
  { configuration }: Source,
  o: { readonly home: string; readonly workers: number; readonly maxRate: number | null },
): Promise<Run> {
  const specFile = `${o.home}.json`;
  const spec = {
    source: configuration,
    target: { dataDirectory: join(o.home, 'main') },
    transfer: { workers: o.workers, maxRate: o.maxRate },
  };
  await writePartsFile(specFile, JSON.stringify(spec));
  const [file = '', ...args] = asPartsUser([
    ...[process.execPath, PGCLONED, '--json', 'run', '--file', specFile],
  ]);
  const child = spawn(file, args, {
    cwd: '/',
    env: { ...partsEnvironment },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child, 'spawn');
  return { child, output: text(child.stdout) };
}

async function resultOf({ output }: Run): Promise<CloneFigures> {
  const last = JSON.parse((await output).trimEnd().split('\n').at(-1) ?? '');
  if (last.event !== 'result') throw new Error('the clone failed');
  return last.result;
}

async function arrived(child: ChildProcess, home: string, bytes: number): Promise<void> {
  while (bytesIn(home) < bytes) {
    if (child.exitCode !== null) throw new Error('the clone ended before');
    await delay(POLL_MS);
  }
}

function bytesIn(home: string): number {
  let bytes = 0;
  try {
    for (const entry of readdirSync(home, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || entry.parentPath.includes('pgcloned-wal')) continue;
      bytes += statSync(join(entry.parentPath, entry.name), { throwIfNoEntry: false })?.size ?? 0;
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  return bytes;
}
