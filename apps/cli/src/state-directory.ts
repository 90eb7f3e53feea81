/**
 * The directory in which the processes of this machine keep what must survive them, and in which the command line
 * finds the way to them: `token` is the admin token that was made at the first start.
 */
import { type FileHandle, mkdir, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError, type Token } from '@pgcloned/contract';
import { lockFile } from '@pgcloned/process';
import { hashOfToken, makeToken } from './token.ts';

export function tokenFileOf(stateDirectory: string): string {
  return join(stateDirectory, 'token');
}

/** @throws {CloneError} `CONFIGURATION_INVALID` if it cannot be made. */
export async function makeStateDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new CloneError('CONFIGURATION_INVALID', `cannot make the state directory ${path}`, {
      facts: { reason: (cause as NodeJS.ErrnoException).code ?? String(cause) },
      hint: 'Choose another one with stateDirectory or PGCLONED_STATE_DIRECTORY, or let this user write there.',
      cause,
    });
  }
}

/**
 * Holds the state directory until it is disposed of, or this process dies.
 *
 * @throws {CloneError} `STATE_DIRECTORY_BUSY` if another process holds it.
 */
export async function lockStateDirectory(
  path: string,
  signal: AbortSignal,
): Promise<AsyncDisposable> {
  const lock = await lockFile(join(path, 'lock'), { signal });
  if (lock !== null) return lock;
  throw new CloneError('STATE_DIRECTORY_BUSY', `another pgcloned uses ${path}`, {
    hint: 'Stop the other one, or give this one a stateDirectory of its own.',
  });
}

/** The admin token of this machine, made now if there is none yet. Only its owner may read the file. */
export async function adminToken(stateDirectory: string): Promise<Token> {
  const path = tokenFileOf(stateDirectory);
  const file = await createExclusively(path);
  if (file === null) return entryOf((await readFile(path, 'utf8')).trim());
  const token = makeToken();
  try {
    await file.writeFile(`${token}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  return entryOf(token);
}

function entryOf(token: string): Token {
  return { name: 'admin', sha256: hashOfToken(token), role: 'admin' };
}

/** Null: it exists. */
async function createExclusively(path: string): Promise<FileHandle | null> {
  try {
    return await open(path, 'wx', 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return null;
    throw error;
  }
}
