/**
 * A host that keeps the configuration of its clusters outside their data directories, as Debian does: it is used and never
 * changed, whichever way the replica is started (R9.1, R9.7).
 *
 * The place is fixed (`/etc/postgresql`), and only root may write there.
 */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rm, rmdir, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { runProcess } from '@pgcloned/process';
import {
  adoptServer,
  configuredPostgresBin,
  freePort,
  leftBehind,
  makeDirectory,
  partsUser,
  runsAsRoot,
  type Source,
  scratchDirectory,
  startSource,
  writePartsFile,
} from '@pgcloned/testbed';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { runClone } from './run-clone.ts';

describe.skipIf(!runsAsRoot)('a configuration of the host', () => {
  const owned = new AsyncDisposableStack();
  let source: Source;
  let directory = '';

  beforeAll(async () => {
    source = owned.use(await startSource({ settings: { work_mem: '9MB' } }));
    directory = owned.use(await scratchDirectory()).path;
    await makeDirectory(join(directory, 's'));
  });

  afterAll(async () => {
    await owned.disposeAsync();
  });

  interface HostCluster extends AsyncDisposable {
    readonly dataDirectory: string;
    readonly configFile: string;
    readonly port: number;
    readonly contents: () => Promise<Readonly<Record<string, string>>>;
  }

  /** What `pg_createcluster` makes below /etc, for a data directory that does not exist yet. */
  async function configureCluster(
    settings: Readonly<Record<string, string | number>> = {},
  ): Promise<HostCluster> {
    const name = `pgcloned_test_${randomBytes(4).toString('hex')}`;
    const root = `/etc/postgresql/${String(source.primary.major)}`;
    const home = join(root, name);
    const dataDirectory = join(directory, name, 'main');
    const configFile = join(home, 'postgresql.conf');
    const port = await freePort();
    const madeFrom = await mkdir(home, { recursive: true });
    await runProcess(
      { file: 'chown', args: [`${String(partsUser.uid)}:${String(partsUser.gid)}`, home], env: {} },
      { signal: AbortSignal.timeout(60_000) },
    );
    const lines = {
      data_directory: dataDirectory,
      hba_file: join(home, 'pg_hba.conf'),
      ident_file: join(home, 'pg_ident.conf'),
      port,
      max_connections: 60,
      shared_buffers: '16MB',
      work_mem: '6MB',
      unix_socket_directories: join(directory, 's'),
      ...settings,
    };
    await writePartsFile(
      configFile,
      Object.entries(lines)
        .map(([key, value]) => `${key} = '${String(value)}'\n`)
        .join(''),
    );
    await writePartsFile(join(home, 'pg_hba.conf'), 'local all all trust\n');
    await writePartsFile(join(home, 'pg_ident.conf'), '');
    await writePartsFile(join(home, 'start.conf'), 'manual\n');
    return {
      dataDirectory,
      configFile,
      port,
      contents: async () =>
        Object.fromEntries(
          await Promise.all(
            (await readdir(home)).map(async (file) => [
              file,
              await readFile(join(home, file), 'utf8'),
            ]),
          ),
        ),
      [Symbol.asyncDispose]: async () => {
        await rm(home, { recursive: true });
        // Other clusters of this machine live there, too.
        if (madeFrom === root) await rmdir(root);
        for (const log of await readdir('/var/log/postgresql').catch(() => []))
          if (log.includes(name)) await rm(join('/var/log/postgresql', log));
      },
    };
  }

  test('is found through a link above a data directory that is yet to be made', async () => {
    await makeDirectory(join(directory, 'disk'));
    await symlink(join(directory, 'disk'), join(directory, 'link'));
    const dataDirectory = join(directory, 'link', 'main');
    await using _ = await configureCluster({ data_directory: dataDirectory });

    const { error } = await runClone(source, { target: { dataDirectory } });

    expect(error).toBeUndefined();
    expect(existsSync(join(directory, 'disk', 'main', 'global', 'pg_control'))).toBe(true);
    expect(existsSync(join(directory, 'disk', 'main', 'postgresql.conf'))).toBe(false);
  });

  test.for(['pg_ctl', 'pg_ctlcluster'])(
    'is used as it is, and left as it is, by a replica that %s starts',
    async (method, { skip }) => {
      skip(method === 'pg_ctlcluster' && configuredPostgresBin !== null, 'it knows one place only');
      await using cluster = await configureCluster();
      const before = await cluster.contents();
      // It takes effect with the next start of the source, but stands in what is copied.
      await source.primary.query(`ALTER SYSTEM SET port = ${String(await freePort())}`);
      const config = join(directory, `${method}.yaml`);
      await writePartsFile(config, JSON.stringify({ worker: { start: { method } } }));

      const { error, result, name } = await runClone(
        source,
        {
          target: { dataDirectory: cluster.dataDirectory },
          replica: { start: true, waitFor: 'streaming' },
        },
        { arguments: ['--config', config] },
      );

      expect(error).toBeUndefined();
      await using standby = await adoptServer(cluster.dataDirectory, {
        configFile: cluster.configFile,
      });
      expect(result.instance).toMatchObject({ state: 'running', port: cluster.port });
      expect(standby.port).toBe(cluster.port);
      expect(
        await standby.query(
          `SELECT current_setting('config_file') AS config, current_setting('hba_file') AS hba,
                  current_setting('work_mem') AS memory, pg_is_in_recovery() AS standby`,
        ),
      ).toEqual([
        {
          config: cluster.configFile,
          hba: join(dirname(cluster.configFile), 'pg_hba.conf'),
          memory: '6MB',
          standby: true,
        },
      ]);
      expect(await cluster.contents()).toEqual(before);
      expect(existsSync(join(cluster.dataDirectory, 'postgresql.conf'))).toBe(false);
      expect(
        await leftBehind({ names: [name], servers: [source.primary], pidsKept: [standby.pid] }),
      ).toEqual([]);
    },
  );

  test('with too few connections is refused before anything is copied, and the file is named', async () => {
    await using cluster = await configureCluster({ max_connections: 20 });

    const { error, status } = await runClone(source, {
      target: { dataDirectory: cluster.dataDirectory },
    });

    expect(error).toMatchObject({
      code: 'REPLICA_SETTINGS_TOO_LOW',
      phase: 'preflight',
      message: 'max_connections of the replica is too low',
      hint: `Set max_connections to at least 60 in ${cluster.configFile}.`,
    });
    expect(status).toBe(7);
    expect(existsSync(cluster.dataDirectory)).toBe(false);
  });

  test('is passed over where that of the source is asked for', async () => {
    await using cluster = await configureCluster({ max_connections: 20 });

    const { error } = await runClone(source, {
      target: { dataDirectory: cluster.dataDirectory },
      replica: { configuration: 'source', start: true, port: await freePort() },
    });

    expect(error).toBeUndefined();
    await using standby = await adoptServer(cluster.dataDirectory);
    expect(await standby.query('SHOW work_mem')).toEqual([{ work_mem: '9MB' }]);
  });

  test('that pg_ctlcluster does not find is told with the remedy before anything is copied', async () => {
    const dataDirectory = join(directory, 'unknown', 'main');
    const config = join(directory, 'unknown.yaml');
    await writePartsFile(
      config,
      JSON.stringify({ worker: { start: { method: 'pg_ctlcluster' } } }),
    );

    const { error, status } = await runClone(
      source,
      { target: { dataDirectory }, replica: { start: true, port: await freePort() } },
      { arguments: ['--config', config] },
    );

    expect(error).toMatchObject({
      code: 'REPLICA_START_FAILED',
      phase: 'preflight',
      message: 'pg_ctlcluster knows no cluster of this directory',
      hint: expect.stringContaining(`with data_directory = '${dataDirectory}'`),
    });
    expect(status).toBe(8);
  });
});
