/** Signals to a process group, and whether anybody in it is still alive. */
import { readdir, readFile } from 'node:fs/promises';
import { codeOf } from './system-error.ts';

/** A group that is gone needs no signal; one that belongs to another user takes none. */
export function signalGroup(groupId: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-groupId, signal);
  } catch (error) {
    const code = codeOf(error);
    if (code !== 'ESRCH' && code !== 'EPERM') throw error;
  }
}

/**
 * Whether no member of the group runs any more.
 *
 * kill(2) still finds a member that is dead but was not reaped. Where process 1 reaps nobody (a container) that is how it
 * stays, hence the look at the states.
 */
export async function groupIsGone(groupId: number): Promise<boolean> {
  try {
    process.kill(-groupId, 0);
  } catch (error) {
    if (codeOf(error) === 'ESRCH') return true;
    if (codeOf(error) !== 'EPERM') throw error;
  }
  for (const pid of await readdir('/proc')) {
    if (/^\d+$/.test(pid) && (await isLiveMember(pid, groupId))) return false;
  }
  return true;
}

async function isLiveMember(pid: string, groupId: number): Promise<boolean> {
  let stat: string;
  try {
    stat = await readFile(`/proc/${pid}/stat`, 'latin1');
  } catch {
    // It ended since /proc was listed.
    return false;
  }
  // The name in parentheses may hold anything; state, parent and group follow it.
  const [state, , group] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(group) === groupId && state !== 'Z' && state !== 'X';
}
