/** How far recovery of a clone is, from its own pg_control: no login is needed for that, and no server need run. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CONTROL_STATE, readLocalControlFile } from '@pgcloned/postgres';
import { exists } from '../target/marker.ts';

export interface Recovery {
  /** The end of the backup was replayed. */
  readonly isConsistent: boolean;
  /** The timeline that the cluster writes since it was promoted; null: that has not come. */
  readonly promotedTo: number | null;
  readonly minRecoveryLsn: string;
}

export async function readRecovery(dataDirectory: string, signal: AbortSignal): Promise<Recovery> {
  // The server puts the label away when what it says stands in pg_control, so it is looked for first. Before that pg_control
  // is the one that was copied, and that of a standby looks like the end.
  const hasBegun = !(await exists(join(dataDirectory, 'backup_label')));
  const { state, backupStartLsn, backupEndRequired, minRecoveryLsn, timeline } =
    await readLocalControlFile(dataDirectory, signal);
  return {
    // Once recovery has begun pg_control names the backup until its end.
    isConsistent:
      hasBegun &&
      state === CONTROL_STATE.inArchiveRecovery &&
      backupStartLsn === '0/0' &&
      !backupEndRequired,
    promotedTo: hasBegun && state === CONTROL_STATE.inProduction ? timeline : null,
    minRecoveryLsn,
  };
}

/**
 * What the startup process of a server is at, as it writes it into its title: `recovering 0000000100000000000000A3`.
 * It changes with every segment, so a standby that replays for long without a word to anyone is seen to move.
 */
export async function startupActivity(postmasterPid: number): Promise<string | null> {
  const task = `/proc/${String(postmasterPid)}/task/${String(postmasterPid)}/children`;
  // A process that ends while it is looked at is no news here: whether the server runs is asked elsewhere.
  const children = (await readFile(task, 'utf8').catch(() => '')).trim().split(' ');
  for (const child of children) {
    const title = await readFile(`/proc/${child}/cmdline`, 'latin1').catch(() => '');
    if (/\bstartup\b/.test(title)) return title.replace(/\0.*/s, '');
  }
  return null;
}
