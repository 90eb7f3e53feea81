/**
 * Reads `global/pg_control`: which cluster this is, where its last checkpoint is, how far recovery has come.
 *
 * The server rewrites the file in place without a lock that a reader could share, and a read may see half of either
 * version (R2.3), so an image counts only if its checksum matches. Where the checksum lies depends on the version (288 in
 * 15, 292 in 18) and is found by trying. All fields read here lie at the same offsets in 15 to 18.
 *
 * Only little-endian images are understood: a physical copy cannot cross that border anyway.
 */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { crc32c } from '@node-rs/crc32';
import { CloneError } from '@pgcloned/contract';
import { formatLsn } from './lsn.ts';
import { CONTROL_FILE_VERSIONS, SUPPORTED_RANGE } from './version.ts';

/** The values of `ControlFile.state` that matter to a clone (R2.4). */
export const CONTROL_STATE = { inArchiveRecovery: 5, inProduction: 6 } as const;

/** The checksum covers everything before it. It lies behind the last field read here and well within the first sector. */
const CRC_OFFSET_MIN = 256;
const CRC_OFFSET_MAX = 508;

/** A writer is done with a page within microseconds; the pause only has to outlast an unlucky schedule. */
const TORN_READ_PAUSE_MS = 50;
/** Torn images that differ from each other prove a busy writer, not a broken file; but not for ever. */
const TORN_READS_MAX = 100;

/** What of it is read, in the length of the file. */
export const CONTROL_FILE_BYTES = 8192;

export interface ControlFile {
  readonly systemIdentifier: string;
  /** `pg_control_version`: 1300 in PostgreSQL 15 and 16, then 1700, 1800. */
  readonly versionNum: number;
  /** See `CONTROL_STATE`. */
  readonly state: number;
  readonly checkpointLsn: string;
  /** The timeline of the last checkpoint. */
  readonly timeline: number;
  readonly minRecoveryLsn: string;
  readonly minRecoveryTimeline: number;
  /** Not `0/0` while the end of a backup has not been replayed yet. */
  readonly backupStartLsn: string;
  readonly backupEndRequired: boolean;
}

/**
 * @returns Null if no checksum matches: the image is torn, too short or no control file.
 * @throws {CloneError} `CONTROL_FILE_INVALID` if the image is whole but of a version that is not known here.
 */
export function parseControlFile(image: Buffer): ControlFile | null {
  if (!hasValidChecksum(image)) return null;
  const versionNum = image.readUInt32LE(8);
  if (!CONTROL_FILE_VERSIONS.includes(versionNum)) {
    throw new CloneError('CONTROL_FILE_INVALID', `pg_control has version ${String(versionNum)}`, {
      facts: { controlVersion: versionNum },
      hint: `Clone a cluster of PostgreSQL ${SUPPORTED_RANGE} of the same byte order as this host.`,
    });
  }
  return {
    systemIdentifier: image.readBigUInt64LE(0).toString(),
    versionNum,
    state: image.readUInt32LE(16),
    checkpointLsn: lsnAt(image, 32),
    timeline: image.readUInt32LE(48),
    minRecoveryLsn: lsnAt(image, 136),
    minRecoveryTimeline: image.readUInt32LE(144),
    backupStartLsn: lsnAt(image, 152),
    backupEndRequired: image.readUInt8(168) !== 0,
  };
}

/**
 * Reads until an image is whole (R2.3).
 *
 * @param read One read of the first `CONTROL_FILE_BYTES`, by a single read(2) where the file lies.
 * @returns The bytes with what they say.
 * @throws {CloneError} `CONTROL_FILE_INVALID` if two reads give the same bad bytes: that is not a race.
 * @throws Whatever `read` throws; the signal's reason if `signal` aborts.
 */
export async function readControlFile(
  read: () => Promise<Buffer>,
  { signal }: { readonly signal: AbortSignal },
): Promise<{ readonly image: Buffer; readonly controlFile: ControlFile }> {
  let previous: Buffer = Buffer.alloc(0);
  for (let reads = 0; reads < TORN_READS_MAX; reads++) {
    signal.throwIfAborted();
    const image = await read();
    const controlFile = parseControlFile(image);
    if (controlFile !== null) return { image, controlFile };
    if (previous.equals(image)) break;
    previous = image;
    await delay(TORN_READ_PAUSE_MS, undefined, { signal }).catch(() => {
      signal.throwIfAborted();
    });
  }
  throw new CloneError('CONTROL_FILE_INVALID', 'the checksum of pg_control does not match', {
    facts: { bytes: previous.length },
    hint: 'Check the source with pg_controldata; its storage may be damaged.',
  });
}

/** That of a cluster on this host, whose server may be writing it. */
export async function readLocalControlFile(
  dataDirectory: string,
  signal: AbortSignal,
): Promise<ControlFile> {
  const { controlFile } = await readControlFile(
    async () => {
      await using file = await open(join(dataDirectory, 'global', 'pg_control'), 'r');
      const { buffer, bytesRead } = await file.read(Buffer.alloc(CONTROL_FILE_BYTES), {
        position: 0,
      });
      return buffer.subarray(0, bytesRead);
    },
    { signal },
  );
  return controlFile;
}

function hasValidChecksum(image: Buffer): boolean {
  // Checksums of growing prefixes: each continues the one before.
  let checksum = 0;
  let covered = 0;
  for (let offset = CRC_OFFSET_MIN; offset <= CRC_OFFSET_MAX; offset += 4) {
    if (image.length < offset + 4) return false;
    checksum = crc32c(image.subarray(covered, offset), checksum);
    covered = offset;
    if (checksum === image.readUInt32LE(offset)) return true;
  }
  return false;
}

function lsnAt(image: Buffer, offset: number): string {
  return formatLsn(image.readBigUInt64LE(offset));
}
