/**
 * What makes a clone a cluster of its own (R9.2), and keeps it from doing what only its source may do (R9.3, R9.6).
 *
 * Recovery has no target: it replays the WAL that is here, which is that of the backup, and the server promotes itself onto
 * a new timeline. The target "immediate" would be missed where no record follows the end of the backup, as in the copy of a
 * standby; and WAL that ends before it ends recovery with an error in either case. What brings the clone there stands at the
 * end of `postgresql.auto.conf` and goes when it is there, or it would strike when somebody makes a standby of it.
 */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError, roleOf } from '@pgcloned/contract';
import { isServerRunning, withoutSettings } from '@pgcloned/postgres';
import { ifMissing, writeDurably } from '@pgcloned/process';
import type { ClonePlan } from '../plan.ts';
import { NOT_READY } from '../target/unready.ts';
import { readRecovery, startupActivity } from './recovery.ts';

const PROMOTION_POLL_MS = 20;

export const AUTO_CONF = 'postgresql.auto.conf';

export function isDetached({ spec }: Pick<ClonePlan, 'spec'>): boolean {
  return roleOf(spec) === 'detached';
}

const DETACHED: Readonly<Record<string, string>> = {
  // A copied '*' would let every commit wait for a standby that never comes.
  synchronous_standby_names: '',
  // No subscription of the source may take its changes twice.
  max_logical_replication_workers: '0',
  // Its replicas are not the source's, for which that may keep a lot.
  wal_keep_size: '0',
  // Only who asks for more than this host gets it (`replica.settings`).
  listen_addresses: 'localhost',
};

/** For ever: whoever wants one of them in a clone sets it there. */
export function detachedSettings({ major }: { readonly major: number }): typeof DETACHED {
  // Logical decoding would wait for standbys that are not its own.
  return { ...DETACHED, ...(major >= 17 && { synchronized_standby_slots: '' }) };
}

/** Until it is promoted. */
const PROMOTING: Readonly<Record<string, string>> = {
  // There must be one, or `recovery.signal` ends the server; it finds nothing, as all WAL is in place.
  restore_command: 'false',
  // Nobody takes a clone that only reads yet for one that writes. Then it may also have less of what R9.1 names.
  hot_standby: 'off',
};

export function untilReady({
  source,
}: Pick<ClonePlan, 'source'>): Readonly<Record<string, string>> {
  return { ...PROMOTING, ...(source.onReady.length > 0 && NOT_READY) };
}

/**
 * Waits for the promotion of a clone that was just started, and settles it. Returns at once if that has been done before, or
 * if it is no detached one.
 *
 * @throws {CloneError} `REPLICA_START_FAILED` if it ends before, or if nothing moves for `stallMs`.
 */
export async function settleOncePromoted(
  dataDirectory: string,
  { stallMs, signal }: { readonly stallMs: number; readonly signal: AbortSignal },
): Promise<void> {
  if (!(await isUnsettled(dataDirectory))) return;
  let mark = '';
  let movedAtMs = performance.now();
  for (;;) {
    const server = await isServerRunning(dataDirectory);
    const recovery = await readRecovery(dataDirectory, signal);
    if (server?.status === 'ready' && recovery.promotedTo !== null) break;
    const now = JSON.stringify([recovery, server && (await startupActivity(server.pid))]);
    if (now !== mark) movedAtMs = performance.now();
    mark = now;
    if (server === null || performance.now() - movedAtMs > stallMs) {
      throw new CloneError('REPLICA_START_FAILED', 'the clone was not promoted', {
        facts: { dataDirectory, minRecoveryLsn: recovery.minRecoveryLsn },
        hint: `See the end of its log in ${dataDirectory}, mend what it names, and start it again.`,
      });
    }
    await delay(PROMOTION_POLL_MS, undefined, { signal });
  }
  await settleDetached(dataDirectory);
}

/** Whether the clone is promoted and serves, and nobody has settled it. */
export async function isToSettle(dataDirectory: string, signal: AbortSignal): Promise<boolean> {
  if (!(await isUnsettled(dataDirectory))) return false;
  const server = await isServerRunning(dataDirectory);
  return (
    server?.status === 'ready' && (await readRecovery(dataDirectory, signal)).promotedTo !== null
  );
}

/** By the last assignment: a standby has an empty one of ours behind whatever its source says. */
async function isUnsettled(dataDirectory: string): Promise<boolean> {
  const text = await readFile(join(dataDirectory, AUTO_CONF), 'utf8').catch(ifMissing(''));
  return text.match(/^restore_command = .*$/gm)?.at(-1) === "restore_command = 'false'";
}

/** Takes away what {@link untilReady} has brought. The clone is promoted, and `onReady` has run. */
export async function settleDetached(dataDirectory: string): Promise<void> {
  const path = join(dataDirectory, AUTO_CONF);
  const text = await readFile(path, 'utf8');
  const settled = withoutSettings(text, { ...PROMOTING, ...NOT_READY });
  if (settled === text) return;
  const { mode } = await stat(path);
  await writeDurably(path, settled, { mode: mode & 0o777 });
}
