/**
 * Whether a secret can be seen by those who should not: in the command line of any process, in files that others may read,
 * and in files that must not hold it at all, as logs and what Redis writes.
 *
 * The environment of a process is not looked at: only its own user and root can read it.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { codeOf, ifMissing } from '@pgcloned/process';
import { listProcesses } from './process-list.ts';

const POLL_MS = 30;
const OTHERS_MAY_READ = 0o004;

export interface SecretSearch {
  /** By what they are, for the messages: `{ 'database password': '…' }`. */
  readonly secrets: Readonly<Record<string, string>>;
  /** Files and directories with all below them that must not hold a secret, whoever may read them. */
  readonly nowhereIn?: readonly string[];
  /** Directories in which what others may read must not hold a secret. */
  readonly hiddenIn?: readonly string[];
}

/** @returns Where each secret was seen, without the secret. */
export async function findSecrets(search: SecretSearch): Promise<string[]> {
  const found: string[] = [];
  const look = (where: string, text: string) => {
    for (const [name, secret] of Object.entries(search.secrets)) {
      if (text.includes(secret)) found.push(`${name} in ${where.replaceAll(secret, '***')}`);
    }
  };
  for (const { pid, args } of await listProcesses()) {
    look(`the command line of ${String(pid)}: ${args}`, args);
  }
  for (const path of search.nowhereIn ?? []) {
    for (const file of await filesBelow(path)) look(file.path, file.path + (await text(file.path)));
  }
  for (const path of search.hiddenIn ?? []) {
    for (const file of await filesBelow(path)) {
      look(file.path, file.path);
      if ((file.mode & OTHERS_MAY_READ) !== 0) {
        look(`${file.path}, which others may read`, await text(file.path));
      }
    }
  }
  return found;
}

/** Searches again and again until it is stopped: for what is there only while a clone runs. */
export function watchForSecrets(
  search: SecretSearch,
): AsyncDisposable & { stop(): Promise<string[]> } {
  const found = new Set<string>();
  let isStopping = false;
  const run = async () => {
    while (!isStopping) {
      for (const line of await findSecrets(search)) found.add(line);
      await delay(POLL_MS);
    }
  };
  const ended = run();
  // It is looked at by whoever stops us.
  ended.catch(() => {});
  return {
    stop: async () => {
      isStopping = true;
      await ended;
      return [...found];
    },
    [Symbol.asyncDispose]: async () => {
      isStopping = true;
      await ended.catch(() => {});
    },
  };
}

interface FoundFile {
  readonly path: string;
  readonly mode: number;
}

async function filesBelow(path: string): Promise<FoundFile[]> {
  try {
    const found = await stat(path);
    if (found.isFile()) return [{ path, mode: found.mode }];
    if (!found.isDirectory()) return [];
    const names = await readdir(path);
    return (await Promise.all(names.map((name) => filesBelow(join(path, name))))).flat();
  } catch (error) {
    // What is searched is in use, and files come and go.
    if (codeOf(error) === 'ENOENT') return [];
    throw error;
  }
}

async function text(path: string): Promise<string> {
  return await readFile(path, 'latin1').catch(ifMissing(''));
}
