/** WAL out of a pg_wal of real files, with segments as a server leaves them: whole, renamed for later, or gone. */
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { takeWal } from '../src/copy/take-wal.ts';
import { OWN_HOST } from '../src/source-host.ts';

const SEGMENT_BYTES = 1024 ** 2;
const SYSTEM_IDENTIFIER = '7710193196751962146';
const LONG_HEADER = 0x0002;

/** Three segments of timeline 2; the backup has begun in the first and ended with the last. */
const NAMES = ['000000020000000000000003', '000000020000000000000004', '000000020000000000000005'];

let root: string;
let source: string;
let target: string;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'take-wal-'));
  source = join(root, 'origin', 'pg_wal');
  target = join(root, 'wal');
  await mkdir(source, { recursive: true });
  await mkdir(target);
  for (const name of NAMES) await writeSegment(name);
});
afterEach(async () => {
  await rm(root, { recursive: true });
});

async function writeSegment(
  name: string,
  header: {
    readonly number?: number;
    readonly timeline?: number;
    readonly systemIdentifier?: string;
    readonly segmentBytes?: number;
    readonly bytes?: number;
  } = {},
): Promise<void> {
  const { number = Number.parseInt(name.slice(16), 16), timeline = 2 } = header;
  const page = Buffer.alloc(header.bytes ?? SEGMENT_BYTES);
  page.writeUInt16LE(LONG_HEADER, 2);
  page.writeUInt32LE(timeline, 4);
  page.writeBigUInt64LE(BigInt(number * SEGMENT_BYTES), 8);
  page.writeBigUInt64LE(BigInt(header.systemIdentifier ?? SYSTEM_IDENTIFIER), 24);
  page.writeUInt32LE(header.segmentBytes ?? SEGMENT_BYTES, 32);
  await writeFile(join(source, name), page);
}

async function take(): Promise<readonly string[]> {
  const run = { signal: new AbortController().signal, plan: { host: { stallMs: 60_000 } } };
  const facts = {
    dataDirectory: join(root, 'origin'),
    walSegmentBytes: SEGMENT_BYTES,
    systemIdentifier: SYSTEM_IDENTIFIER,
  };
  await takeWal(run as never, { facts, host: OWN_HOST } as never, {
    directory: target,
    start: { startLsn: '0/300028', timeline: 2 } as never,
    stop: { stopLsn: '0/600000' } as never,
  });
  return (await readdir(target)).sort();
}

test('the segments of the backup are taken, with the history of their timeline and nothing else', async () => {
  await writeSegment('000000020000000000000002');
  await writeSegment('000000020000000000000006');
  for (const name of ['00000001.history', '00000002.history', '00000003.history'])
    await writeFile(join(source, name), '');
  await mkdir(join(source, 'archive_status'));

  expect(await take()).toEqual(['00000001.history', '00000002.history', ...NAMES].sort());
});

test('the first segment may begin on the timeline before, whose end lies in it', async () => {
  await writeSegment(NAMES[0] ?? '', { timeline: 1 });

  expect(await take()).toEqual(NAMES);
});

test('a segment that the source has removed is named', async () => {
  await rm(join(source, NAMES[1] ?? ''));

  await expect(take()).rejects.toMatchObject({
    code: 'WAL_REMOVED',
    facts: { segment: NAMES[1] },
    hint: expect.stringContaining('wal.retention: pin'),
  });
});

test.each([
  ['of an earlier position, renamed for later use', { number: 1 }],
  ['of another cluster', { systemIdentifier: '7710193196751962147' }],
  ['of an earlier timeline, which ended before', { timeline: 1 }],
  ['of a later timeline', { timeline: 3 }],
  ['of another size by its header', { segmentBytes: 16 * SEGMENT_BYTES }],
  ['that is too short', { bytes: SEGMENT_BYTES / 2 }],
])('a segment %s is not what its name says', async (_what, header) => {
  await writeSegment(NAMES[2] ?? '', header);

  await expect(take()).rejects.toMatchObject({
    code: 'WAL_INCOMPLETE',
    facts: { segment: NAMES[2] },
  });
});

test('nor is the first one, if it is of a later timeline', async () => {
  await writeSegment(NAMES[0] ?? '', { timeline: 3 });

  await expect(take()).rejects.toMatchObject({
    code: 'WAL_INCOMPLETE',
    facts: { segment: NAMES[0] },
  });
});
