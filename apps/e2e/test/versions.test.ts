/**
 * One engine for every version of PostgreSQL: each is cloned while it is written to, and from a standby while its primary is
 * written to and while nobody writes.
 *
 * What this machine has is run, what it lacks is named as skipped; CONTRIBUTING.md says how to bring more.
 */
import { join } from 'node:path';
import {
  adoptServer,
  checkChecksums,
  compareTables,
  findDamage,
  findPostgres,
  freePort,
  installAmcheck,
  installedMajors,
  leftBehind,
  POSTGRES_MAJORS,
  type PostgresServer,
  scratchDirectory,
  startCommitProbe,
  startSource,
  startStandbyOf,
  startWriteLoad,
  waitForReplay,
} from '@pgcloned/testbed';
import { describe, expect, test } from 'vitest';
import { runClone } from './run-clone.ts';

/** What only some versions have, and what a clone has to get along with. */
const settingsOf = (major: number) => ({
  ...(major >= 17 && { summarize_wal: 'on' }),
  // A standby that believed it would be promoted.
  ...(major < 16 && { promote_trigger_file: '/dev/null' }),
});

describe.each(POSTGRES_MAJORS)('PostgreSQL %i', (major) => {
  test.skipIf(!installedMajors().includes(major))(
    'a clone of a primary that is written to is equal, whole and streams',
    async () => {
      await using scratch = await scratchDirectory();
      const at = (name: string) => join(scratch.path, name);
      await using source = await startSource({
        binDirectory: findPostgres(major),
        settings: { max_wal_size: '64MB', min_wal_size: '32MB', ...settingsOf(major) },
      });
      const { primary } = source;
      await installAmcheck(primary);
      await primary.createTablespace('fast', at('source fast'));
      await using load = await startWriteLoad(primary, { tablespaces: ['fast'] });

      const { error, result, name, stderr } = await runClone(source, {
        target: {
          dataDirectory: at('main'),
          tablespaces: { [at('source fast')]: at('fast') },
        },
        replica: { start: true, waitFor: 'streaming', port: await freePort() },
      });

      expect(error).toBeUndefined();
      expect(stderr).toBe('');
      expect(result.leftovers).toEqual([]);
      expect(result.result.verification).toMatchObject({ wal: 'passed', pages: 'passed' });
      await using standby = await adoptServer(at('main'));
      expect(standby.major).toBe(major);
      await load.stop();
      expect(
        await leftBehind({
          names: [name, scratch.path],
          servers: [primary],
          pidsKept: [standby.pid, primary.pid],
        }),
      ).toEqual([]);
      await expectEqual(primary, standby);
    },
  );

  test.skipIf(!installedMajors().includes(major))(
    'clones of a standby, of a busy one and then of an idle one, are equal, whole and stream from it',
    async () => {
      await using scratch = await scratchDirectory();
      const at = (name: string) => join(scratch.path, name);
      await using source = await startSource({
        binDirectory: findPostgres(major),
        // For the standby, which has no slot; itself it keeps no more than it must.
        settings: {
          ...{ max_wal_size: '64MB', min_wal_size: '32MB', wal_keep_size: '4GB' },
          ...settingsOf(major),
        },
      });
      const { primary } = source;
      await installAmcheck(primary);
      await primary.createTablespace('fast', at('primary fast'));
      const load = await startWriteLoad(primary, { tablespaces: ['fast'], pauseMs: 200 });
      await using _ = load;
      await using from = await startStandbyOf(source, {
        settings: { wal_keep_size: '0', ...(major < 16 && { promote_trigger_file: '' }) },
        tablespaces: { [at('primary fast')]: at('standby fast') },
      });
      const probe = await startCommitProbe(primary);
      await using __ = probe;

      const clone = async (name: string) => {
        const { error, result, stderr, ...ended } = await runClone(from, {
          target: {
            dataDirectory: at(`${name} main`),
            tablespaces: { [at('standby fast')]: at(`${name} fast`) },
          },
          replica: { start: true, waitFor: 'streaming', port: await freePort() },
        });
        expect(error).toBeUndefined();
        expect(stderr).toBe('');
        expect(result.leftovers).toEqual([]);
        return { name: ended.name, replica: await adoptServer(at(`${name} main`)) };
      };
      const ofBusy = await clone('busy');
      await using replicaOfBusy = ofBusy.replica;
      await load.stop();
      await probe.stop();
      await waitForReplay(primary, from.standby);
      const ofIdle = await clone('idle');
      await using replicaOfIdle = ofIdle.replica;

      expect(
        await leftBehind({
          names: [ofBusy.name, ofIdle.name],
          servers: [primary, from.standby],
          directories: [scratch.path],
        }),
      ).toEqual([]);
      expect(await streamingFrom(from.standby)).toHaveLength(2);
      // A commit that waits for a standby waits for as long as it lives.
      expect(probe.longestMs()).toBeLessThan(10_000);
      await expectEqual(primary, replicaOfBusy);
      await expectEqual(primary, replicaOfIdle);
    },
  );
});

async function expectEqual(primary: PostgresServer, replica: PostgresServer): Promise<void> {
  await waitForReplay(primary, replica);
  expect(await compareTables(primary, replica)).toEqual([]);
  expect(await findDamage(replica)).toBe('');
  await replica.stop('fast');
  expect(await checkChecksums(replica)).toBeGreaterThan(0);
}

async function streamingFrom({ query }: PostgresServer): Promise<readonly object[]> {
  return await query(`SELECT FROM pg_stat_replication WHERE state = 'streaming'`);
}
