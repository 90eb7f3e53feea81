/** A real standby, made by pg_basebackup, seen from both ends. */

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runAsPartsUser, scratchDirectory, startCluster, startPrimary } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import {
  CONTROL_STATE,
  openSession,
  parseControlFile,
  parseLsn,
  replicaStatus,
  standbyStatus,
} from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();

test('a standby that streams is seen by itself, by its primary and in its control file', async () => {
  await using primary = await startPrimary();
  await using scratch = await scratchDirectory();
  const dataDirectory = join(scratch.path, 'standby');
  await runAsPartsUser([
    ...[join(primary.binDirectory, 'pg_basebackup'), '-D', dataDirectory, '-c', 'fast', '-R'],
    ...['-d', `host=127.0.0.1 port=${String(primary.port)} user=postgres`],
  ]);
  await using onPrimary = await openSession(connectionTo(primary), {
    applicationName: 'o',
    signal,
  });
  expect(await standbyStatus(onPrimary, 'clone', signal)).toBeNull();
  await using standby = await startCluster(dataDirectory, { settings: { cluster_name: 'clone' } });
  await using onStandby = await openSession(connectionTo(standby), {
    applicationName: 'o',
    signal,
  });
  const [row] = await primary.query<{ lsn: string }>(
    `SELECT pg_logical_emit_message(false, 'x', 'y')::text AS lsn`,
  );
  const written = parseLsn(row?.lsn ?? '0/0');

  await expect
    .poll(async () =>
      parseLsn((await standbyStatus(onPrimary, 'clone', signal))?.replayLsn ?? '0/0'),
    )
    .toBeGreaterThanOrEqual(written);

  expect(await standbyStatus(onPrimary, 'clone', signal)).toMatchObject({ state: 'streaming' });
  const status = await replicaStatus(onStandby, signal);
  expect(status).toMatchObject({ inRecovery: true, walReceiver: 'streaming' });
  expect(parseLsn(status.replayLsn ?? '0/0')).toBeGreaterThanOrEqual(written);
  expect(parseLsn(status.receiveLsn ?? '0/0')).toBeGreaterThanOrEqual(written);
  expect(parseControlFile(await readFile(join(dataDirectory, 'global/pg_control')))).toMatchObject({
    state: CONTROL_STATE.inArchiveRecovery,
    systemIdentifier: status.systemIdentifier,
    backupStartLsn: '0/0',
    backupEndRequired: false,
  });
});
