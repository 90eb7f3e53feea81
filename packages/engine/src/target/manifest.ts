/**
 * Leaves a `backup_manifest` in a clone that is about to be published.
 *
 * What was copied was summed up when it was checked, and is not read again unless it has changed since; what the clone
 * was given besides, configuration and label for instance, is read now. WAL is not in it, as pg_verifybackup wants it.
 */
import { basename, dirname, join, relative } from 'node:path';
import {
  formatManifest,
  type ManifestContent,
  type ManifestFile,
  OUTSIDE_MANIFEST,
  openPageChecker,
} from '@pgcloned/postgres';
import { isWithin, writeDurably } from '@pgcloned/process';
import type { ByteName } from '@pgcloned/rsync';
import { bytePath } from '../copy/directories.ts';
import { type LocalEntry, listLocal } from '../copy/reconcile.ts';
import type { FileSums } from '../copy/verification.ts';
import type { TablespacePlace } from './layout.ts';
import { markerPath } from './marker.ts';

/** A file as PostgreSQL names it, and where it lies. */
interface Listed extends LocalEntry {
  readonly name: ByteName;
  readonly path: Buffer;
}

export async function writeManifest(
  dataDirectory: string,
  o: Omit<ManifestContent, 'files'> & {
    readonly pageBytes: number;
    readonly tablespaces: readonly TablespacePlace[];
    readonly sums: FileSums;
    /** What lies in the data directory under another name than it will have; null: it will not stay. */
    readonly becomes: ReadonlyMap<ByteName, ByteName | null>;
    readonly fileMode: number;
  },
): Promise<void> {
  const listed = [
    ...(await listDataDirectory(dataDirectory, o.becomes)),
    ...(await Promise.all(o.tablespaces.map(listTablespace))).flat(),
  ];
  const isKnown = ({ name, bytes, mtimeNs }: Listed) => {
    const known = o.sums.get(name);
    return known?.bytes === bytes && known.mtimeNs === mtimeNs;
  };
  const unknown = listed.filter((file) => !isKnown(file));
  await using reader = openPageChecker({
    ...{ pageBytes: o.pageBytes, judgesPages: false, sums: true, threads: 1 },
  });
  const read = await reader.check(
    unknown.map(({ path, bytes }) => ({
      ...{ path: path.toString('latin1'), bytes, firstBlock: null },
    })),
    'now',
  );
  const sums = new Map(o.sums);
  for (const [index, { name }] of unknown.entries()) {
    const sum = read[index];
    if (sum != null) sums.set(name, sum);
  }
  const files = listed.flatMap(({ name }): readonly ManifestFile[] => {
    const sum = sums.get(name);
    if (sum === undefined) return [];
    const modifiedAt = new Date(Number(sum.mtimeNs / 1_000_000n));
    return [{ name, bytes: sum.bytes, modifiedAt, crc: sum.crc }];
  });
  const text = formatManifest({ ...o, files });
  await writeDurably(join(dataDirectory, 'backup_manifest'), text, { mode: o.fileMode });
}

async function listDataDirectory(
  dataDirectory: string,
  becomes: ReadonlyMap<ByteName, ByteName | null>,
): Promise<readonly Listed[]> {
  const outside = ['pg_wal', ...OUTSIDE_MANIFEST];
  for (const [name, later] of becomes) if (later === null) outside.push(name);
  return [...(await listLocal(dataDirectory))]
    .filter(([name, { type }]) => type === 'file' && !outside.some((one) => isWithin(name, one)))
    .map(([name, entry]) => ({
      ...entry,
      name: becomes.get(name) ?? name,
      path: bytePath(dataDirectory, name),
    }));
}

/** With our marker, which lies beside the version directory, where pg_verifybackup finds it. */
async function listTablespace({ oid, final }: TablespacePlace): Promise<readonly Listed[]> {
  const location = dirname(final);
  const ours = [basename(final), relative(location, markerPath(final, 'tablespace'))];
  return [...(await listLocal(location))]
    .filter(([name, { type }]) => type === 'file' && ours.some((one) => isWithin(name, one)))
    .map(([name, entry]) => ({
      ...entry,
      name: `pg_tblspc/${oid}/${name}`,
      path: bytePath(location, name),
    }));
}
