import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type PostgresServer, startPrimary } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  formatLsn,
  parseSegmentHeader,
  SEGMENT_HEADER_BYTES,
  segmentStartOfName,
} from '../src/index.ts';

let server: PostgresServer;
beforeAll(async () => {
  server = await startPrimary();
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
});

async function headerOf(name: string): Promise<Buffer> {
  await using file = await open(join(server.dataDirectory, 'pg_wal', name), 'r');
  return (await file.read({ buffer: Buffer.alloc(SEGMENT_HEADER_BYTES) })).buffer;
}

test('a segment tells position, timeline, cluster and size, as the server has them', async () => {
  const [row] = await server.query<{ id: string; bytes: string; name: string }>(
    `SELECT system_identifier::text AS id, pg_walfile_name(pg_current_wal_lsn()) AS name,
            (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size') AS bytes
       FROM pg_control_system()`,
  );
  const segmentBytes = Number(row?.bytes);

  expect(parseSegmentHeader(await headerOf(row?.name ?? ''))).toEqual({
    lsn: formatLsn(segmentStartOfName(row?.name ?? '', segmentBytes) ?? 0n),
    timeline: 1,
    systemIdentifier: row?.id,
    segmentBytes,
  });
});

test('a recycled segment tells what it was, and not what it is called now', async () => {
  // The checkpoint gives segments that it no longer needs the names of later ones.
  for (let round = 0; round < 3; round += 1)
    await server.query("SELECT pg_switch_wal() FROM pg_logical_emit_message(true, '', 'x')");
  await server.query('CHECKPOINT');
  const names = (await readdir(join(server.dataDirectory, 'pg_wal'))).filter((name) =>
    /^[0-9A-F]{24}$/.test(name),
  );
  const last = names.sort().at(-1) ?? '';
  const header = parseSegmentHeader(await headerOf(last));

  expect(header).not.toBeNull();
  expect(header?.lsn).not.toBe(
    formatLsn(segmentStartOfName(last, header?.segmentBytes ?? 0) ?? 0n),
  );
});

test.each([
  ['too short', Buffer.alloc(SEGMENT_HEADER_BYTES - 1, 0xff)],
  ['all zero', Buffer.alloc(SEGMENT_HEADER_BYTES)],
])('what is %s is no header', (_what, bytes) => {
  expect(parseSegmentHeader(bytes)).toBeNull();
});
