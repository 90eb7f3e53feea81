/**
 * The directory in which the processes of this machine keep what must survive them, and in which the command line
 * finds the way to them: `token` is the admin token that was made at the first start.
 */
import { randomUUID } from 'node:crypto';
import { constants, existsSync } from 'node:fs';
import { access, link, mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError, type Token } from '@pgcloned/contract';
import { codeOf, lockFile, syncDirectory, writeDurably } from '@pgcloned/process';
import { hashOfToken, makeToken } from './token.ts';

export function tokenFileOf(stateDirectory: string): string {
  return join(stateDirectory, 'token');
}

/** @throws {CloneError} `CONFIGURATION_INVALID` if it cannot be made or written, as one that root has made. */
export async function makeStateDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
    await access(path, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw new CloneError('CONFIGURATION_INVALID', `cannot use the state directory ${path}`, {
      facts: { reason: codeOf(cause) ?? String(cause) },
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

/**
 * The admin token of this machine, made now if there is none yet. Only its owner may read the file.
 *
 * @throws {CloneError} `CONFIGURATION_INVALID` if the file holds none.
 */
export async function adminToken(stateDirectory: string): Promise<Token> {
  const path = tokenFileOf(stateDirectory);
  // The file appears with its content: API and `up` may start at once, and a crash must not leave one without a token.
  const made = `${path}.${randomUUID()}.tmp`;
  try {
    if (!existsSync(path)) {
      await writeDurably(made, `${makeToken()}\n`);
      await link(made, path).catch((error: unknown) => {
        if (codeOf(error) !== 'EEXIST') throw error;
      });
      await syncDirectory(stateDirectory);
    }
    const token = (await readFile(path, 'utf8')).trim();
    if (token !== '') return { name: 'admin', sha256: hashOfToken(token), role: 'admin' };
  } finally {
    await rm(made, { force: true });
  }
  throw new CloneError('CONFIGURATION_INVALID', `there is no token in ${path}`, {
    hint: 'Remove the file: the next start makes a new token.',
  });
}
