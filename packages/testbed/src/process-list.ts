/** What runs on this machine, as /proc tells it. */
import { readdir, readFile } from 'node:fs/promises';
import { codeOf } from '@pgcloned/process';

export interface ListedProcess {
  readonly pid: number;
  readonly parentPid: number;
  readonly uid: number;
  /** The command line, with blanks between its words. */
  readonly args: string;
}

/** Every process that still has a command line: neither kernel threads nor zombies. */
export async function listProcesses(): Promise<readonly ListedProcess[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(pids.map(readProcess));
  return found.filter((entry) => entry !== null);
}

/** Its children, their children and so on. */
export function descendantsOf(
  pid: number,
  processes: readonly ListedProcess[],
): readonly ListedProcess[] {
  const children = processes.filter(({ parentPid }) => parentPid === pid);
  return children.flatMap((child) => [child, ...descendantsOf(child.pid, processes)]);
}

async function readProcess(pid: string): Promise<ListedProcess | null> {
  try {
    const [commandLine, status] = await Promise.all([
      readFile(`/proc/${pid}/cmdline`, 'utf8'),
      readFile(`/proc/${pid}/status`, 'utf8'),
    ]);
    if (commandLine === '') return null;
    return {
      pid: Number(pid),
      parentPid: Number(/^PPid:\t(\d+)/m.exec(status)?.[1]),
      uid: Number(/^Uid:\t(\d+)/m.exec(status)?.[1]),
      args: commandLine.replaceAll('\0', ' ').trimEnd(),
    };
  } catch (error) {
    // It ended while we looked.
    const code = codeOf(error);
    if (code === 'ENOENT' || code === 'ESRCH') return null;
    throw error;
  }
}
