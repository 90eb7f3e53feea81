/**
 * A primary that fails over while it is cloned: the clone goes on with the one that was promoted, and never with another
 * cluster that has got its address.
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  adoptServer,
  compareTables,
  freePort,
  type PostgresServer,
  type Source,
  scratchDirectory,
  startCluster,
  startPrimary,
  startSource,
  startStandbyOf,
  waitForReplay,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { startClone } from './run-clone.ts';

const SLOWLY = { maxRate: 15_000_000, workers: 2 };

let owned: AsyncDisposableStack;
let source: Source;
let dataDirectory = '';

beforeEach(async () => {
  owned = new AsyncDisposableStack();
  source = owned.use(await startSource({ ownIdentity: true }));
  dataDirectory = join(owned.use(await scratchDirectory()).path, 'clone', 'main');
  for (let table = 1; table <= 20; table++)
    await source.primary.query(
      `CREATE TABLE cold_${String(table)} AS SELECT i, md5(i::text) FROM generate_series(1, 30000) i`,
    );
});

afterEach(async () => {
  await owned.disposeAsync();
});

test('a failover in the middle costs an attempt, and of what was copied only what differs is sent again', async () => {
  const { primary } = source;
  const clone = await startClone(source, {
    target: { dataDirectory },
    transfer: SLOWLY,
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });
  await clone.copied(0.7);

  // Its address is that of a standby for a while, and then of a primary on a new timeline.
  await primary.stop('immediate');
  await writePartsFile(join(primary.dataDirectory, 'standby.signal'), '');
  await primary.start();
  await untilCopiedFrom(primary);
  await primary.query('SELECT pg_promote()');

  const { status, stderr, result } = await clone.ended;
  expect(stderr).toBe('');
  expect(status).toBe(0);
  expect(result.result.timeline).toBe(2);
  expect(result.result.keptBytes).toBeGreaterThan(result.result.bytes / 2);
  expect(result.result.wireBytes).toBeLessThan(1.3 * result.result.bytes);
  await using standby = await adoptServer(dataDirectory);
  await waitForReplay(primary, standby);
  expect(await compareTables(primary, standby)).toEqual([]);
});

/** The clone has taken the standby for its source. */
async function untilCopiedFrom({ query }: PostgresServer): Promise<void> {
  await expect
    .poll(
      async () =>
        await query(
          `SELECT FROM pg_stat_replication WHERE application_name LIKE 'pgcloned%' AND pg_is_in_recovery()`,
        ),
      { timeout: 30_000 },
    )
    .toHaveLength(1);
}

test('a primary that a promotion has left behind is waited out, though it has got the address', async () => {
  const { primary } = source;
  await using promoted = await startStandbyOf(source);
  const { standby: successor } = promoted;
  await successor.query('SELECT pg_promote()');
  await successor.query('CREATE TABLE only_here AS SELECT 1 AS one');
  const clone = await startClone(promoted, {
    target: { dataDirectory },
    transfer: SLOWLY,
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  });
  await clone.copied(0.5);

  await successor.stop('immediate');
  await primary.stop('fast');
  {
    await using _ = await startCluster(primary.dataDirectory, {
      settings: { port: String(successor.port) },
    });
    await clone.said(/interrupted: the clone was begun on timeline 2, and .* a primary on 1 now/);
  }
  await successor.start();

  const { stderr, result } = await clone.ended;
  expect(stderr).toBe('');
  expect(result.result.timeline).toBe(2);
  await using standby = await adoptServer(dataDirectory);
  await waitForReplay(successor, standby);
  expect(await compareTables(successor, standby)).toEqual([]);
});

test('another cluster that has got the address is refused, and nothing of it is copied', async () => {
  const { primary, configuration } = source;
  const other = owned.use(
    await startPrimary({
      ownIdentity: true,
      hba: ['host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust'],
    }),
  );
  await other.query(`CREATE ROLE ${configuration.user} SUPERUSER LOGIN`);
  const [row] = await other.query<{ id: string }>(
    'SELECT system_identifier::text AS id FROM pg_control_system()',
  );
  await other.stop();
  const clone = await startClone(source, { target: { dataDirectory }, transfer: SLOWLY });
  await clone.copied(0.3);

  await primary.stop('immediate');
  const settings = { port: String(primary.port) };
  owned.use(await startCluster(other.dataDirectory, { settings }));

  const { error } = await clone.ended;
  expect(error).toMatchObject({
    code: 'TARGET_OTHER_CLUSTER',
    phase: 'preflight',
    facts: { systemIdentifierOfSource: row?.id },
  });
  expect(await readdir(join(dataDirectory, 'global'))).not.toContain('pg_control');
});
