/**
 * The middle of each phase: how a clone is caught there, and let go.
 *
 * `start-backup` waits for a checkpointer that is suspended, `collect-wal` of a primary for a WAL sender: they stand still as they
 * would on a machine that swaps. `copy-files` is caught on its way. The others are held by holds.ts: only the
 * clone stands still, and its worker goes on.
 */
import { existsSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Clone, PhaseName } from '@pgcloned/contract';
import { unlessAborted } from '@pgcloned/process';
import type { Catch } from './gate.ts';
import type { HoldName } from './holds.ts';
import { hasStandby, type Stage } from './stage.ts';

const POLL_MS = 10;

/** The copy has begun, and most of it is still to come. */
const SHARE_COPIED = 0.3;
/** About, without its tablespaces. */
const SOURCE_BYTES = 40_000_000;

export interface Moment extends Disposable {
  /** Settles once the clone is there, where it stays; rejects if the signal aborts before. */
  readonly reached: (clone: Clone, signal: AbortSignal) => Promise<void>;
  /** Lets it go on. */
  readonly letGo: () => void;
}

/** To be asked for before the clone is: it must not come too late. */
export function catchIn(phase: PhaseName, stage: Stage): Moment {
  const isLocal = stage.setting === 'local';
  switch (phase) {
    case 'preflight':
      return caughtAt('checkSettings', stage);
    case 'stream-wal':
      return caughtAt(isLocal ? 'remoteExists' : 'startWalReceiver', stage);
    case 'start-backup':
      return caughtInStartBackup(stage);
    case 'copy-files':
      return isLocal ? caughtAt('makeDirectories', stage) : caughtInCopy(SHARE_COPIED);
    case 'stop-backup':
      return caughtAt('stopBackup', stage);
    case 'collect-wal':
      // From a standby all that is needed may be here before, and by reflinks nothing streams.
      return hasStandby(stage.setting) || isLocal
        ? caughtAt('collectWal', stage)
        : caughtInCollectWal(stage);
    case 'publish':
      return caughtAt('configureReplica', stage);
    case 'start-replica':
      return caughtInStartReplica(stage);
  }
}

function caughtAt(name: HoldName, { gate }: Stage): Moment {
  const caught = gate.catchAt(name);
  return {
    reached: async (_clone, signal) => {
      await unlessAborted(caught.held, signal);
    },
    letGo: caught.letGo,
    [Symbol.dispose]: caught.letGo,
  };
}

function caughtInStartBackup(stage: Stage): Moment {
  return suspending(stage, ['startBackup'], async ({ signal, suspend }, begun) => {
    await unlessAborted(begun.held, signal);
    suspend(await backends(stage, `backend_type = 'checkpointer'`));
    begun.letGo();
    const isWaiting = `query LIKE '%pg_backup_start%' AND wait_event LIKE 'Checkpoint%' AND pid <> pg_backend_pid()`;
    while ((await backends(stage, isWaiting)).length === 0) await delay(POLL_MS, null, { signal });
  });
}

function caughtInCollectWal(stage: Stage): Moment {
  return suspending(
    stage,
    ['stopBackup', 'collectWal'],
    async ({ clone, signal, suspend }, before, begun) => {
      await unlessAborted(before.held, signal);
      suspend(
        await backends(
          stage,
          `backend_type = 'walsender' AND application_name LIKE 'pgcloned_${clone.id}_%'`,
        ),
      );
      before.letGo();
      await unlessAborted(begun.held, signal);
      begun.letGo();
    },
  );
}

/** A server that streams already is the standby: of our own receiver nothing is left in that phase. */
function caughtInStartReplica(stage: Stage): Moment {
  return suspending(stage, ['standbyStatus'], async ({ signal }, caught) => {
    await unlessAborted(caught.held, signal);
    const streaming = `SELECT FROM pg_stat_replication WHERE state = 'streaming'`;
    while ((await stage.server.query(streaming)).length === 0)
      await delay(POLL_MS, null, { signal });
  });
}

interface Reach {
  readonly clone: Clone;
  readonly signal: AbortSignal;
  /** Until the clone is let go. */
  readonly suspend: (pids: readonly number[]) => void;
}

function suspending<Names extends readonly HoldName[]>(
  { gate }: Stage,
  names: readonly [...Names],
  reach: (reach: Reach, ...catches: { [Name in keyof Names]: Catch }) => Promise<void>,
): Moment {
  const catches = names.map((name) => gate.catchAt(name)) as { [Name in keyof Names]: Catch };
  const suspended: number[] = [];
  const letGo = () => {
    for (const caught of catches) caught.letGo();
    for (const pid of suspended)
      if (existsSync(`/proc/${String(pid)}`)) process.kill(pid, 'SIGCONT');
    suspended.length = 0;
  };
  return {
    reached: async (clone, signal) => {
      const suspend = (pids: readonly number[]) => {
        for (const pid of pids) {
          process.kill(pid, 'SIGSTOP');
          suspended.push(pid);
        }
      };
      await reach({ clone, signal, suspend }, ...catches);
    },
    letGo,
    [Symbol.dispose]: letGo,
  };
}

/** In the middle of `copy-files`, when this share of all bytes is here. */
export function caughtInCopy(share: number): Moment {
  return {
    reached: async ({ spec }, signal) => {
      while ((await bytesBelow(spec.target.dataDirectory)) < share * SOURCE_BYTES)
        await delay(POLL_MS, null, { signal });
    },
    letGo: () => {},
    [Symbol.dispose]: () => {},
  };
}

async function bytesBelow(directory: string): Promise<number> {
  const names = await readdir(directory, { recursive: true }).catch(() => []);
  const sizes = names.map(async (name) => {
    // rsync renames what it has completed.
    const found = await stat(join(directory, name)).catch(() => null);
    return found?.isFile() === true ? found.size : 0;
  });
  return (await Promise.all(sizes)).reduce((sum, bytes) => sum + bytes, 0);
}

async function backends({ server }: Stage, condition: string): Promise<readonly number[]> {
  const rows = await server.query<{ pid: number }>(
    `SELECT pid FROM pg_stat_activity WHERE ${condition}`,
  );
  return rows.map(({ pid }) => pid);
}
