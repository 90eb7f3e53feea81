/**
 * Clones on one host by reflinks (R10.*), on real XFS and btrfs: of a primary and of a standby, with everything that makes
 * files change meanwhile; and on a filesystem that cannot share blocks.
 */
import { join } from 'node:path';
import {
  adoptServer,
  checkChecksums,
  compareTables,
  findDamage,
  freePort,
  installAmcheck,
  leftBehind,
  mountFilesystem,
  type PostgresServer,
  runsAsRoot,
  startPrimary,
  startWriteLoad,
  type TestFilesystem,
  waitForReplay,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runClone } from './run-clone.ts';

const FILESYSTEM_BYTES = 1024 ** 3;

const localSource = (dataDirectory: string) => ({
  configuration: { local: true, dataDirectory, user: 'postgres' } as never,
});

describe.skipIf(!runsAsRoot).each(['xfs', 'btrfs'] as const)(
  'on %s, which takes root to mount,',
  (type) => {
    const owned = new AsyncDisposableStack();
    let filesystem: TestFilesystem;
    let primary: PostgresServer;
    const at = (...names: readonly string[]) => join(filesystem.path, ...names);

    beforeAll(async () => {
      filesystem = owned.use(await mountFilesystem({ type, bytes: FILESYSTEM_BYTES }));
      primary = owned.use(await startPrimary({ dataDirectory: at('origin', 'data') }));
      await primary.createTablespace('elsewhere', at('origin', 'elsewhere'));
      await installAmcheck(primary);
    });

    afterAll(async () => {
      await owned.disposeAsync();
    });

    test('a clone of a primary under load is a standby that has all it has, and shares its blocks', async () => {
      const port = await freePort();
      await using load = await startWriteLoad(primary, { tablespaces: ['elsewhere'] });
      const { status, error } = await runClone(localSource(primary.dataDirectory), {
        method: 'reflink',
        target: {
          dataDirectory: at('clone', 'data'),
          tablespaces: { [at('origin', 'elsewhere')]: at('clone', 'elsewhere') },
        },
        replica: { role: 'standby', start: true, waitFor: 'streaming', port },
      });
      expect(error).toBeUndefined();
      expect(status).toBe(0);
      await using clone = await adoptServer(at('clone', 'data'));
      await load.stop();
      await waitForReplay(primary, clone);
      expect(await compareTables(primary, clone)).toEqual([]);
      expect(await findDamage(clone)).toBe('');
      await clone.stop();
      expect(await checkChecksums(clone)).toBeGreaterThan(0);
      expect(
        await leftBehind({ names: [at('clone')], servers: [primary], directories: [at()] }),
      ).toEqual([]);
    });
  },
);
