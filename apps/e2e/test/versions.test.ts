/**
 * One engine for every version of PostgreSQL: each is cloned while it is written to.
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
  scratchDirectory,
  startSource,
  startWriteLoad,
  waitForReplay,
} from '@pgcloned/testbed';
import { describe, expect, test } from 'vitest';
import { runClone } from './run-clone.ts';

/** What only some versions have, and what a clone has to get along with. */
const settingsOf = (major: number) => ({ ...(major >= 17 && { summarize_wal: 'on' }) });

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
      await waitForReplay(primary, standby);
      expect(await compareTables(primary, standby)).toEqual([]);
      expect(await findDamage(standby)).toBe('');
      await standby.stop('fast');
      expect(await checkChecksums(standby)).toBeGreaterThan(0);
    },
  );
});
