/**
 * A clone that stands still at a share of its files, with all that it receives: what is killed or written meanwhile finds it
 * exactly there.
 *
 * Only its own process is stopped. Its rsyncs stand still because what they receive comes through its relay, so it must have
 * a `maxRate`.
 */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { codeOf } from '@pgcloned/process';
import { descendantsOf, listProcesses } from './process-list.ts';
import type { Source } from './source.ts';

const POLL_MS = 10;

export interface RunningClone {
  readonly process: { readonly pid: number };
  /** Settles when it has ended, and never rejects. */
  readonly ended: Promise<unknown>;
}

export interface HaltedClone<Clone extends RunningClone> extends Disposable {
  readonly clone: Clone;
  readonly goOn: () => void;
}

/** Halts the clone once so many bytes of files lie in `home`, where its data directory is. */
export async function haltAt<Clone extends RunningClone>(
  clone: Clone,
  { home, bytes }: { readonly home: string; readonly bytes: number },
): Promise<HaltedClone<Clone>> {
  let isRunning = true;
  void clone.ended.then(() => {
    isRunning = false;
  });
  const goOn = () => {
    if (isRunning) process.kill(clone.process.pid, 'SIGCONT');
  };
  while (bytesIn(home) < bytes) {
    await delay(POLL_MS);
    if (!isRunning) throw new Error('the clone ended before');
  }
  process.kill(clone.process.pid, 'SIGSTOP');
  return { clone, goOn, [Symbol.dispose]: goOn };
}

function bytesIn(home: string): number {
  let bytes = 0;
  try {
    for (const entry of readdirSync(home, { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || entry.parentPath.includes('pgcloned-wal')) continue;
      bytes += statSync(join(entry.parentPath, entry.name), { throwIfNoEntry: false })?.size ?? 0;
    }
  } catch (error) {
    // The clone has not made it yet, or renames something just now.
    if (codeOf(error) !== 'ENOENT') throw error;
  }
  return bytes;
}

/** What of a clone is killed; every rsync that fetches is two processes, the second forked by the first. */
export const VICTIMS = {
  'the first process of an rsync': { command: /^rsync .*--files-from/, forked: 'spared' },
  'the second process of an rsync': { command: /^rsync .*--files-from/, forked: 'instead' },
  'the rsync daemon': { command: /^rsync --daemon/, forked: 'too' },
  'an SSH connection': { command: /^sshd: .*@notty/, forked: 'spared' },
} as const;

/** Kills a process that works for the clone, on either side. */
export async function killVictim(
  clone: RunningClone,
  { sshd }: Pick<Source, 'sshd'>,
  victim: keyof typeof VICTIMS,
): Promise<void> {
  const { command, forked } = VICTIMS[victim];
  const all = await listProcesses();
  const matching = (pid: number) =>
    descendantsOf(pid, all).filter(({ args }) => command.test(args));
  const [first] = [clone.process.pid, sshd.pid].flatMap(matching);
  if (first === undefined) throw new Error(`there is no ${victim}`);
  const below = matching(first.pid);
  const chosen = { spared: [first], too: [first, ...below], instead: below.slice(0, 1) }[forked];
  if (chosen.length === 0) throw new Error(`there is no ${victim}`);
  for (const { pid } of chosen) process.kill(pid, 'SIGKILL');
}
