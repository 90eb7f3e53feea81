/**
 * The text of `backup_manifest`, by which pg_verifybackup tells whether the files are still those that were copied.
 *
 * The last line holds the digest of all before it, so the text is what counts, byte for byte. From 17 on it names the
 * system identifier as well.
 */
import { isUtf8 } from 'node:buffer';
import { createHash } from 'node:crypto';

export interface ManifestFile {
  /** Relative to the data directory, tablespaces below `pg_tblspc`; one character per byte. */
  readonly name: string;
  readonly bytes: number;
  readonly modifiedAt: Date;
  readonly crc: number;
}

export interface ManifestContent {
  readonly major: number;
  readonly systemIdentifier: string;
  readonly files: readonly ManifestFile[];
  /** What pg_verifybackup reads of the WAL. */
  readonly wal: { readonly timeline: number; readonly startLsn: string; readonly endLsn: string };
}

/** What pg_verifybackup does not look at, besides `pg_wal`: a server may change it before it starts. */
export const OUTSIDE_MANIFEST: ReadonlySet<string> = new Set([
  'backup_manifest',
  'postgresql.auto.conf',
  'recovery.signal',
  'standby.signal',
]);

export function formatManifest({ major, systemIdentifier, files, wal }: ManifestContent): string {
  const range = {
    Timeline: wal.timeline,
    'Start-LSN': wal.startLsn,
    'End-LSN': wal.endLsn,
  };
  const text = [
    `{ "PostgreSQL-Backup-Manifest-Version": ${major >= 17 ? '2' : '1'},`,
    // A number of 64 bits, which is more than ours have.
    ...(major >= 17 ? [`"System-Identifier": ${systemIdentifier},`] : []),
    `"Files": [\n${files.map(formatFile).join(',\n')}\n],`,
    `"WAL-Ranges": [\n${JSON.stringify(range)}\n],`,
    '',
  ].join('\n');
  return `${text}"Manifest-Checksum": "${createHash('sha256').update(text).digest('hex')}"}\n`;
}

function formatFile({ name, bytes, modifiedAt, crc }: ManifestFile): string {
  const path = Buffer.from(name, 'latin1');
  return JSON.stringify({
    ...(isUtf8(path) ? { Path: path.toString() } : { 'Encoded-Path': path.toString('hex') }),
    Size: bytes,
    'Last-Modified': modifiedAt.toISOString().replace(/T(.*)\..*/, ' $1 GMT'),
    'Checksum-Algorithm': 'CRC32C',
    Checksum: digest(crc),
  });
}

/** As it lies in the memory of the servers that are cloned. */
function digest(crc: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(crc);
  return bytes.toString('hex');
}
