/**
 * A standby beside its source repeats each `CREATE TABLESPACE` in the very directory of the source, and both destroy each
 * other's files (R1.11). One that was created since the copy is looked for whenever we start such a standby; from what is
 * created while it runs nobody can keep it.
 *
 * For that it knows where its source lies, whose links tell its tablespaces also while its server is stopped.
 */
import { lstat, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { readLocalControlFile } from '@pgcloned/postgres';
import { ifMissing } from '@pgcloned/process';

const NOTE = 'pgcloned.source';

/** @param source The data directory of the source; null: it lies on another host, or what it does is no concern of the clone. */
export async function noteSource(
  directory: string,
  source: string | null,
  mode: number,
): Promise<void> {
  const path = join(directory, NOTE);
  if (source === null) await rm(path, { force: true });
  else await writeFile(path, source, { mode });
}

/** @throws {CloneError} `SOURCE_CHANGED` if the source has a tablespace that the standby has not. */
export async function refuseTablespacesSince(
  dataDirectory: string,
  signal: AbortSignal,
): Promise<void> {
  const source = await readFile(join(dataDirectory, NOTE), 'utf8').catch(ifMissing(null));
  if (source === null || !(await isSameCluster(source, dataDirectory, signal))) return;
  const own = await tablespacesOf(dataDirectory);
  const added = (await tablespacesOf(source)).filter((oid) => !own.includes(oid));
  if (added.length > 0) throw sharedTablespaces(dataDirectory, added);
}

/** @param tablespaces Their names, or their OIDs. */
export function sharedTablespaces(
  dataDirectory: string,
  tablespaces: readonly string[],
): CloneError {
  return new CloneError('SOURCE_CHANGED', 'a tablespace was created on the source', {
    facts: { dataDirectory, tablespaces: tablespaces.join(', ') },
    hint: `Do not start the clone in ${dataDirectory}: both would use the directory of the tablespace. Clone again, best with replica.role: detached.`,
  });
}

/** What lies there may have gone, or be another cluster by now. */
async function isSameCluster(source: string, clone: string, signal: AbortSignal): Promise<boolean> {
  const there = await readLocalControlFile(source, signal).catch(() => null);
  signal.throwIfAborted();
  const here = await readLocalControlFile(clone, signal);
  return there?.systemIdentifier === here.systemIdentifier;
}

/** Their OIDs. One that is a directory there lies in the data directory, of each cluster in its own. */
async function tablespacesOf(dataDirectory: string): Promise<readonly string[]> {
  const directory = join(dataDirectory, 'pg_tblspc');
  const found: string[] = [];
  for (const name of await readdir(directory))
    if ((await lstat(join(directory, name))).isSymbolicLink()) found.push(name);
  return found;
}
