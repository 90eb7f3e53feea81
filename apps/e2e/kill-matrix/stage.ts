/**
 * Where cells are played: a primary under load, another host that receives clones over a cable, and pgcloned there as
 * processes of its own that can be killed one by one. Prepared once and used again as long as each cell leaves it clean.
 * What is cloned, and how it is reached, is its setting.
 *
 * Source, API and Redis live in our network, the worker and its clones in that of the other host, unless blocks are shared. Both hosts share the
 * files and the process table: what is left behind on either is seen from here.
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  installAmcheck,
  makeDirectory,
  mountFilesystem,
  type OtherHost,
  otherHost,
  type Pgcloned,
  type PostgresServer,
  type PrivateRedis,
  type Source,
  type StandbySource,
  scratchDirectory,
  startCommitProbe,
  startPgcloned,
  startRedis,
  startSource,
  startStandbyOf,
  startWriteLoad,
  stopServer,
  type TestFilesystem,
} from '@pgcloned/testbed';
import { type Gate, openGate } from './gate.ts';

/** Several times what a clone takes, and still quick to fill. */
const DATA_BYTES = 300_000_000;
const WAL_BYTES = 1_000_000_000;
/** Of the source as well, with its WAL; only what is written takes room. */
const SHARED_BYTES = 8_000_000_000;

/** Longer than a disk is full that is freed (rows.ts). */
const NO_SPACE_SECONDS = 12;

/** A crash costs the pin, so like any primary with a standby it keeps some WAL of its own accord. */
const SOURCE_SETTINGS = { max_wal_size: '64MB', min_wal_size: '32MB', wal_keep_size: '3GB' };

/** Those of a standby would have to lie elsewhere than those of its primary, on this one machine. */
const tablespacesIn = (setting: Setting) =>
  hasStandby(setting) || setting === 'local' ? [] : ['fast', 'slow'];

/**
 * The primary; the primary through a tunnel in SSH; a standby of it; whichever of the two there is, a standby rather; the
 * primary by reflinks, on its own host.
 */
export const SETTINGS = ['primary', 'tunnel', 'standby', 'hosts', 'local'] as const;
export type Setting = (typeof SETTINGS)[number];

export const hasStandby = (setting: Setting) => setting === 'standby' || setting === 'hosts';

export interface Stage extends AsyncDisposable {
  readonly setting: Setting;
  readonly host: OtherHost;
  readonly source: Source;
  /** What is cloned unless something befalls it: the primary of `source`, or a standby of that. */
  readonly server: PostgresServer;
  /** All that may be cloned. */
  readonly servers: readonly PostgresServer[];
  readonly redis: PrivateRedis;
  readonly pgcloned: Pgcloned;
  readonly gate: Gate;
  /** Filesystems of their own, so that each can be full without the other; but that of the source where blocks are shared. */
  readonly data: TestFilesystem;
  readonly wal: TestFilesystem;
  /** `target` of a request for a clone of this name. */
  readonly targetOf: (name: string) => {
    readonly host: string;
    readonly dataDirectory: string;
    readonly walDirectory: string;
    readonly tablespaces: Readonly<Record<string, string>>;
  };
  /** Begins to write, and to look whether commits get through. */
  readonly startLoad: () => Promise<Load>;
}

interface Load extends AsyncDisposable {
  /** @returns The longest commit while it ran, in milliseconds. */
  stop(): Promise<number>;
}

export async function prepareStage(setting: Setting): Promise<Stage> {
  await using parts = new AsyncDisposableStack();
  const isLocal = setting === 'local';
  const host = parts.use(await otherHost());
  const { path } = parts.use(await scratchDirectory());
  const data = parts.use(
    await mountFilesystem(
      isLocal ? { type: 'xfs', bytes: SHARED_BYTES } : { type: 'tmpfs', bytes: DATA_BYTES },
    ),
  );
  const wal = isLocal
    ? data
    : parts.use(await mountFilesystem({ type: 'tmpfs', bytes: WAL_BYTES }));
  const source = parts.use(
    await startSource(
      {
        settings: SOURCE_SETTINGS,
        ...(isLocal && { dataDirectory: join(data.path, 'origin', 'data') }),
      },
      host,
    ),
  );
  parts.defer(async () => {
    // Of cells that broke off: nobody else would ever stop them.
    for (const name of await readdir(data.path)) await stopServer(join(data.path, name, 'main'));
  });
  const redis = parts.use(await startRedis());
  const gate = parts.use(await openGate(join(path, 'gate')));
  const locationOf = (name: string) => join(path, 'tablespaces', name);
  await installAmcheck(source.primary);
  await makeDirectory(join(path, 'tablespaces'));
  const tablespaces = tablespacesIn(setting);
  for (const name of tablespaces) await source.primary.createTablespace(name, locationOf(name));
  await (await startWriteLoad(source.primary, { tablespaces })).stop();
  const from = hasStandby(setting)
    ? parts.use(await startStandbyOf(source, { address: host.secondAddress }))
    : null;
  const holdPhases = new URL('hold-phases.ts', import.meta.url);
  holdPhases.searchParams.set('socket', gate.socketPath);
  const pgcloned = parts.use(
    await startPgcloned(
      path,
      {
        redis: redis.url,
        worker: { dataRoots: [data.path, wal.path], noSpaceSeconds: NO_SPACE_SECONDS },
        sources: { orders: configurationOf(setting, source, from) },
      },
      {
        parts: ['worker', 'api'],
        ...(!isLocal && { workerOn: host.on }),
        env: { NODE_OPTIONS: `--import=${holdPhases.href}` },
      },
    ),
  );
  const owned = parts.move();
  return {
    setting,
    host,
    source,
    server: from?.standby ?? source.primary,
    servers: [source.primary, ...(from === null ? [] : [from.standby])],
    redis,
    pgcloned,
    gate,
    data,
    wal,
    targetOf: (name) => ({
      host: 'testbed',
      dataDirectory: join(data.path, name, 'main'),
      walDirectory: join(wal.path, name, wal === data ? 'wal' : 'main'),
      tablespaces: Object.fromEntries(
        tablespaces.map((one) => [locationOf(one), join(data.path, name, one)]),
      ),
    }),
    startLoad: async () => await startLoad(source, tablespaces),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function configurationOf(setting: Setting, source: Source, from: StandbySource | null): object {
  const { host, port, ...rest } = source.configuration;
  const other = from?.configuration ?? source.configuration;
  switch (setting) {
    case 'primary':
    case 'standby':
      return other;
    case 'tunnel':
      return { ...source.configuration, ssh: { ...rest.ssh, tunnelDatabase: true } };
    case 'local': {
      const { dataDirectory } = source.primary;
      return { local: true, dataDirectory, user: 'postgres' };
    }
    case 'hosts': {
      const hosts = [other, { host, port }].map((one) => `${one.host}:${String(one.port)}`);
      return { ...rest, hosts, prefer: 'standby' };
    }
  }
}

async function startLoad({ primary }: Source, tablespaces: readonly string[]): Promise<Load> {
  await using parts = new AsyncDisposableStack();
  const load = parts.use(
    await startWriteLoad(primary, {
      tablespaces,
      reuseTables: true,
      // Stages are played side by side: what counts is that all of it changes, not how often.
      pauseMs: 400,
      outlivesServer: true,
    }),
  );
  const probe = parts.use(await startCommitProbe(primary));
  const owned = parts.move();
  return {
    stop: async () => {
      await Promise.all([load.stop(), probe.stop()]);
      return probe.longestMs();
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}
