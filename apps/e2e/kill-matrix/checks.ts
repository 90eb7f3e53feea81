/** What holds after every cell, whatever was struck: each check throws with what does not. */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Clone } from '@pgcloned/contract';
import {
  adoptServer,
  checkChecksums,
  compareTables,
  findDamage,
  leftBehind,
  type PostgresServer,
  runAsPartsUser,
  startCluster,
  waitForReplay,
} from '@pgcloned/testbed';
import type { Target } from './clone-under-test.ts';
import { CLEAN_WITHIN_MS } from './rows.ts';
import type { Stage } from './stage.ts';

/** A commit that is blocked waits for as long as what blocks it; this machine may be slow for much less. */
const COMMIT_MS_MAX = 4_000;

/** A standby whose question was lost on a dead link asks again after half a minute, and later after more. */
const REPLAY_STALL_MS = 100_000;

/** The checkpointer may hear of a setting only after the first. */
const CHECKPOINTS_MAX = 5;

export function isPublished({ dataDirectory }: Target): boolean {
  return existsSync(join(dataDirectory, 'global/pg_control'));
}

/** Nothing that is there can be taken for a cluster. */
export async function requireUnstartable(stage: Stage, target: Target): Promise<void> {
  if (isPublished(target)) throw new Error('pg_control is there before the clone is published');
  const pgCtl = join(stage.source.primary.binDirectory, 'pg_ctl');
  const { status } = await runAsPartsUser(
    [pgCtl, 'start', '--wait', '--timeout=5', '-D', target.dataDirectory],
    { accept: 'any' },
  );
  if (status === 0) throw new Error('what is not published could be started');
}

/** @returns After how many milliseconds nothing was left. */
export async function requireNothingLeft(
  stage: Stage,
  { id, spec: { target }, leftovers }: Clone,
): Promise<number> {
  const beganAtMs = performance.now();
  const { dataDirectory, walDirectory } = target;
  const directories = [dataDirectory, walDirectory ?? dataDirectory].flatMap((path) => [
    dirname(path),
    dirname(dirname(path)),
  ]);
  const found = await leftBehind({
    names: [id],
    servers: stage.servers,
    directories: directories.filter(existsSync),
    withinMs: CLEAN_WITHIN_MS,
  });
  if (found.length > 0) throw new Error(`left behind: ${found.join('; ')}`);
  if (leftovers.length > 0) throw new Error(`leftovers: ${JSON.stringify(leftovers)}`);
  return performance.now() - beganAtMs;
}

/** Nobody writes any more: whoever follows the primary has all that it needs of it. */
export async function untilFollowed({ source: { primary }, servers }: Stage): Promise<void> {
  for (const server of servers)
    if (server !== primary) await waitForReplay(primary, server, { stallMs: REPLAY_STALL_MS });
}

/** Nobody writes any more: the clone has every row, sound indexes and good checksums. It is stopped afterwards. */
export async function requireWhole(stage: Stage, target: Target): Promise<void> {
  await using standby = await serverOf(target);
  const { primary } = stage.source;
  await waitForReplay(primary, standby, { stallMs: REPLAY_STALL_MS });
  const differences = await compareTables(primary, standby);
  if (differences.length > 0) throw new Error(`not equal: ${differences.join('; ')}`);
  await requireUndamaged(standby);
}

/** It is a cluster that serves, whether or not it has all that the source has. It is stopped afterwards. */
export async function requireSound(target: Target): Promise<void> {
  await using standby = await serverOf(target);
  await requireUndamaged(standby);
}

async function requireUndamaged(standby: PostgresServer): Promise<void> {
  const damage = await findDamage(standby);
  if (damage !== '') throw new Error(`amcheck: ${damage}`);
  await standby.stop('fast');
  if ((await checkChecksums(standby)) === 0) throw new Error('no block was checked');
}

/** The server of a published clone; started if it does not run. */
async function serverOf({ dataDirectory }: Target): Promise<PostgresServer> {
  return existsSync(join(dataDirectory, 'postmaster.pid'))
    ? await adoptServer(dataDirectory).catch(async () => await startCluster(dataDirectory))
    : await startCluster(dataDirectory);
}

/** After a checkpoint the source keeps nothing older than that, but for what it is told to keep in any case. */
export async function requireNoWalKept({ source: { primary } }: Stage): Promise<void> {
  await primary.query('ALTER SYSTEM SET wal_keep_size = 0');
  await primary.query('SELECT pg_reload_conf(), pg_switch_wal()');
  for (let attempt = 1; ; attempt += 1) {
    await primary.query('CHECKPOINT');
    const [found] = await primary.query<{ oldest: string; needed: string }>(
      `SELECT min(name) FILTER (WHERE name ~ '^[0-9A-F]{24}$') AS oldest,
              (SELECT redo_wal_file FROM pg_control_checkpoint()) AS needed
         FROM pg_ls_waldir()`,
    );
    if (found !== undefined && found.oldest >= found.needed) break;
    if (attempt === CHECKPOINTS_MAX) throw new Error(`WAL is kept: ${JSON.stringify(found)}`);
  }
  await primary.query('ALTER SYSTEM RESET wal_keep_size');
  await primary.query('SELECT pg_reload_conf()');
}

export function requireCommits(longestMs: number): void {
  if (longestMs > COMMIT_MS_MAX)
    throw new Error(`a commit on the primary took ${String(Math.round(longestMs))} ms`);
}
