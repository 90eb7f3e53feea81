/**
 * The configuration that a host keeps for a data directory outside of it, as Debian does (R9.7):
 * `/etc/postgresql/15/main/postgresql.conf` with `data_directory = '/var/lib/postgresql/15/main'`. It belongs to the
 * host and is used as it is.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ifMissing } from '@pgcloned/process';
import { resolveReal } from '../target/guard.ts';

const CONFIGURATION_ROOT = '/etc/postgresql';

/** @returns The path of its `postgresql.conf`, or null if the host has none for this data directory. */
export async function findHostConfiguration(
  dataDirectory: string,
  major: number,
): Promise<string | null> {
  const root = join(CONFIGURATION_ROOT, String(major));
  for (const cluster of await readdir(root).catch(ifMissing([]))) {
    const file = join(root, cluster, 'postgresql.conf');
    // That of another cluster may be for others alone, or have another name.
    const text = await readFile(file, 'utf8').catch(() => null);
    const configured = text === null ? null : lastValueOf('data_directory', text);
    if (configured === null) continue;
    // Of another cluster it may be a link that leads nowhere.
    const resolved = await resolveReal(configured).catch(() => null);
    if (resolved?.real === dataDirectory) return file;
  }
  return null;
}

/** The last assignment wins, as the server reads it. */
function lastValueOf(name: string, text: string): string | null {
  const assignment = new RegExp(`^\\s*${name}\\s*=?\\s*'((?:[^']|'')*)'`, 'gm');
  return [...text.matchAll(assignment)].at(-1)?.[1]?.replaceAll("''", "'") ?? null;
}
