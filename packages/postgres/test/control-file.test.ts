/** Compared with what pg_controldata says of the same file; torn images are made from two real ones. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32c } from '@node-rs/crc32';
import { findPostgres, installedMajors, runAsPartsUser, startPrimary } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { CONTROL_STATE, parseControlFile, readControlFile } from '../src/index.ts';

const { signal } = new AbortController();

test.each(installedMajors())(
  'a control file of PostgreSQL %i is read as pg_controldata reads it',
  async (major) => {
    await using server = await startPrimary({ binDirectory: findPostgres(major) });
    await server.query('CHECKPOINT');
    const { stdout } = await runAsPartsUser([
      join(server.binDirectory, 'pg_controldata'),
      server.dataDirectory,
    ]);
    const said = (label: string) =>
      new RegExp(`^${label}: +(.*)$`, 'm').exec(stdout.toString())?.[1];

    const control = parseControlFile(await imageOf(server.dataDirectory));

    expect(control).toEqual({
      systemIdentifier: said('Database system identifier'),
      versionNum: Number(said('pg_control version number')),
      state: CONTROL_STATE.inProduction,
      checkpointLsn: said('Latest checkpoint location'),
      timeline: Number(said("Latest checkpoint's TimeLineID")),
      minRecoveryLsn: said('Minimum recovery ending location'),
      minRecoveryTimeline: Number(said("Min recovery ending loc's timeline")),
      backupStartLsn: said('Backup start location'),
      backupEndRequired: said('End-of-backup record required') === 'yes',
    });
    expect(said('Database cluster state')).toBe('in production');
  },
);

test.each([
  { versionNum: 1300, checksumOffset: 288 },
  { versionNum: 1700, checksumOffset: 288 },
  { versionNum: 1800, checksumOffset: 292 },
])('version $versionNum is known, and its checksum is found where it has it', async (has) => {
  await using server = await startPrimary();
  const image = await imageOf(server.dataDirectory);
  image.writeUInt32LE(has.versionNum, 8);
  image.writeUInt32LE(crc32c(image.subarray(0, has.checksumOffset)), has.checksumOffset);

  expect(parseControlFile(image)?.versionNum).toBe(has.versionNum);
});

test('one bit that is wrong is noticed anywhere before the checksum', async () => {
  await using server = await startPrimary();
  const original = await imageOf(server.dataDirectory);

  for (let offset = 0; offset < 288; offset++) {
    const damaged = Buffer.from(original);
    damaged.writeUInt8(damaged.readUInt8(offset) ^ 1, offset);
    expect(parseControlFile(damaged)).toBeNull();
  }
});

test('an image of an unknown version is refused by name', async () => {
  await using server = await startPrimary();
  const image = await imageOf(server.dataDirectory);
  image.writeUInt32LE(1201, 8);
  image.writeUInt32LE(crc32c(image.subarray(0, 288)), 288);

  expect(() => parseControlFile(image)).toThrow(
    expect.objectContaining({ code: 'CONTROL_FILE_INVALID', facts: { controlVersion: 1201 } }),
  );
});

test('an image that is too short is not valid', () => {
  expect(parseControlFile(Buffer.alloc(0))).toBeNull();
  expect(parseControlFile(Buffer.alloc(200))).toBeNull();
});

test('a reader gets past torn images to a whole one', async () => {
  await using server = await startPrimary();
  const before = await imageOf(server.dataDirectory);
  await server.query('CREATE TABLE t AS SELECT 1; CHECKPOINT');
  const after = await imageOf(server.dataDirectory);
  const torn = (at: number) => Buffer.concat([after.subarray(0, at), before.subarray(at)]);
  const images = [torn(40), torn(60), after];

  const { image, controlFile } = await readControlFile(
    async () => images.shift() ?? Buffer.alloc(0),
    { signal },
  );

  expect(image.equals(after)).toBe(true);
  expect(controlFile.checkpointLsn).toBe(parseControlFile(after)?.checkpointLsn);
});

test('the same bad bytes twice are a broken file and not a race', async () => {
  let reads = 0;
  const read = async () => {
    reads += 1;
    return Buffer.alloc(8192, 7);
  };

  await expect(readControlFile(read, { signal })).rejects.toMatchObject({
    code: 'CONTROL_FILE_INVALID',
  });

  expect(reads).toBe(2);
});

async function imageOf(dataDirectory: string): Promise<Buffer> {
  return await readFile(join(dataDirectory, 'global', 'pg_control'));
}
