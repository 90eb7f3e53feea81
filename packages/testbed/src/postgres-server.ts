/**
 * Real PostgreSQL servers.
 *
 * A server that a test started is a child in the foreground and dies with the test; one that the product started is
 * adopted, and both are handled alike: by the pid in their postmaster.pid, which is right also after somebody else
 * restarted them.
 */
import { existsSync, readFileSync } from 'node:fs';
import { appendFile, readFile, readlink, rename, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { codeOf } from '@pgcloned/process';
import pg from 'pg';
import { copyCluster, initCluster } from './cluster-template.ts';
import { freePort } from './free-port.ts';
import { findPostgres } from './installed-postgres.ts';
import { runAsPartsUser, writePartsFile } from './parts-user.ts';
import { listProcesses } from './process-list.ts';
import { scratchDirectory } from './scratch-directory.ts';
import { type ServerProcess, startServerProcess } from './server-process.ts';

const START_ATTEMPTS_MAX = 5;
const STOP_TIMEOUT_MS = 60_000;
const POLL_MS = 10;
const STOP_SIGNALS = { smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT' } as const;

export interface PostgresServer extends AsyncDisposable {
  readonly dataDirectory: string;
  /** The configuration file, wherever it lies. */
  readonly configFile: string;
  readonly host: '127.0.0.1';
  readonly port: number;
  readonly socketDirectory: string;
  readonly binDirectory: string;
  readonly major: number;
  readonly logFile: string;
  /** Of the postmaster; 0 while there is none. */
  readonly pid: number;
  /** One statement as superuser in a session of its own, through the unix socket. bigint and numeric come as text. */
  query<Row extends pg.QueryResultRow>(
    sql: string,
    parameters?: readonly unknown[],
    database?: string,
  ): Promise<Row[]>;
  /** Does nothing if it is stopped. Default: fast. */
  stop(mode?: keyof typeof STOP_SIGNALS): Promise<void>;
  /** Settles once no process of it is left, also of those that its postmaster left when it was killed. */
  untilDead(): Promise<void>;
  /** Starts it as a child of this process; settles once it takes connections. */
  start(): Promise<void>;
  /** Makes the directory as the parts' user, and the tablespace in it. */
  createTablespace(name: string, location: string): Promise<void>;
}

export interface PrimaryOptions {
  readonly port?: number;
  /** Lines of postgresql.conf. They win over the quick ones (`fsync = off`) that a test gets by default. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Lines of pg_hba.conf in place of trust on loopback. The unix socket stays open for everyone in either case. */
  readonly hba?: readonly string[];
  /** Default: a scratch directory, removed at the end. A given one must not exist and is the test's to remove. */
  readonly dataDirectory?: string;
  /** Where pg_wal shall be a link to. */
  readonly walDirectory?: string;
  /** Where postgresql.conf, pg_hba.conf and pg_ident.conf shall lie, as on Debian; then PGDATA has none. */
  readonly configurationDirectory?: string;
  readonly initdbArgs?: readonly string[];
  /** A system identifier that no other server of the tests has; costs a second. */
  readonly ownIdentity?: boolean;
  readonly binDirectory?: string;
  /** listen_addresses. Default: 127.0.0.1. */
  readonly listen?: string;
}

/** A new primary with `wal_level = replica`, superuser `postgres` without a password, and data checksums. */
export async function startPrimary(options: PrimaryOptions = {}): Promise<PostgresServer> {
  const { binDirectory = findPostgres(), initdbArgs = [], ownIdentity = false } = options;
  const scratch = await scratchDirectory();
  try {
    const dataDirectory = options.dataDirectory ?? join(scratch.path, 'data');
    await makeDirectory(dirname(dataDirectory));
    await makeDirectory(join(scratch.path, 's'));
    await (ownIdentity ? initCluster : copyCluster)(dataDirectory, { binDirectory, initdbArgs });
    if (options.walDirectory !== undefined) await moveWal(dataDirectory, options.walDirectory);
    const configurationDirectory = options.configurationDirectory ?? dataDirectory;
    if (configurationDirectory !== dataDirectory) {
      await moveConfiguration(dataDirectory, configurationDirectory);
    }
    await writeHba(configurationDirectory, options.hba);

    const configFile = join(configurationDirectory, 'postgresql.conf');
    const pristine = await readFile(configFile, 'utf8');
    for (let attempt = 1; ; attempt += 1) {
      const port = options.port ?? (await freePort());
      const settings = {
        listen_addresses: options.listen ?? '127.0.0.1',
        port: String(port),
        unix_socket_directories: join(scratch.path, 's'),
        wal_level: 'replica',
        max_connections: '60',
        shared_buffers: '32MB',
        // What a test looks at is lost with the machine anyway.
        fsync: 'off',
        ...options.settings,
      };
      await writeFile(configFile, pristine + formatSettings(settings));
      const server = serverAt({
        dataDirectory,
        configFile,
        binDirectory,
        port,
        socketDirectory: join(scratch.path, 's'),
        logFile: join(scratch.path, 'log'),
        onDispose: async () => {
          await scratch[Symbol.asyncDispose]();
        },
      });
      try {
        await server.start();
        return server;
      } catch (error) {
        const taken = /could not bind|Address already in use/.test(String(error));
        if (!taken || options.port !== undefined || attempt === START_ATTEMPTS_MAX) throw error;
      }
    }
  } catch (error) {
    await scratch[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * A server that somebody else started, a clone for instance. Disposing it stops it and leaves its files.
 *
 * @throws If it does not run.
 */
export async function adoptServer(
  dataDirectory: string,
  options: { readonly configFile?: string; readonly binDirectory?: string } = {},
): Promise<PostgresServer> {
  const running = readPostmasterPid(dataDirectory);
  if (running === null) throw new Error(`no server runs in ${dataDirectory}`);
  return serverAt({
    dataDirectory,
    configFile: options.configFile ?? join(dataDirectory, 'postgresql.conf'),
    binDirectory: options.binDirectory ?? findPostgres(majorOf(dataDirectory)),
    port: running.port,
    socketDirectory: running.socketDirectory,
    logFile: join(dirname(dataDirectory), 'adopted.log'),
    onDispose: async () => {},
  });
}

/** Ends the server of a data directory, whoever started it. Does nothing if there is none, nor if there is no such directory. */
export async function stopServer(dataDirectory: string): Promise<void> {
  const running = readPostmasterPid(dataDirectory);
  if (running !== null) await stopStranger(running.pid, STOP_SIGNALS.immediate);
}

/** Starts a stopped cluster, a published clone for instance, as a child of this process. */
export async function startCluster(
  dataDirectory: string,
  options: {
    readonly configFile?: string;
    readonly binDirectory?: string;
    readonly settings?: Readonly<Record<string, string>>;
  } = {},
): Promise<PostgresServer> {
  const scratch = await scratchDirectory();
  try {
    const port = await freePort();
    const server = serverAt({
      dataDirectory,
      configFile: options.configFile ?? join(dataDirectory, 'postgresql.conf'),
      binDirectory: options.binDirectory ?? findPostgres(majorOf(dataDirectory)),
      port,
      socketDirectory: scratch.path,
      logFile: join(scratch.path, 'log'),
      settings: {
        listen_addresses: '127.0.0.1',
        port: String(port),
        unix_socket_directories: scratch.path,
        ...options.settings,
      },
      onDispose: async () => {
        await scratch[Symbol.asyncDispose]();
      },
    });
    await server.start();
    return server;
  } catch (error) {
    await scratch[Symbol.asyncDispose]();
    throw error;
  }
}

function serverAt(layout: {
  readonly dataDirectory: string;
  readonly configFile: string;
  readonly binDirectory: string;
  readonly port: number;
  readonly socketDirectory: string;
  readonly logFile: string;
  /** For the command line, where they win over every file. */
  readonly settings?: Readonly<Record<string, string>>;
  readonly onDispose: () => Promise<void>;
}): PostgresServer {
  const { dataDirectory, configFile, binDirectory, port, socketDirectory, logFile } = layout;
  let child: ServerProcess | null = null;

  const server: PostgresServer = {
    dataDirectory,
    configFile,
    host: '127.0.0.1',
    port,
    socketDirectory,
    binDirectory,
    major: majorOf(dataDirectory),
    logFile,
    get pid() {
      return readPostmasterPid(dataDirectory)?.pid ?? 0;
    },
    query: async (sql, parameters = [], database = 'postgres') => {
      const client = new pg.Client({ host: socketDirectory, port, user: 'postgres', database });
      // A session that the server ends also rejects its query, and that is where it is looked at.
      client.on('error', () => {});
      await client.connect();
      try {
        return (await client.query(sql, [...parameters])).rows;
      } finally {
        await client.end();
      }
    },
    stop: async (mode = 'fast') => {
      const running = readPostmasterPid(dataDirectory);
      if (child?.isAlive() === true) await child.stop(STOP_SIGNALS[mode]);
      else if (running !== null) await stopStranger(running.pid, STOP_SIGNALS[mode]);
      child = null;
    },
    untilDead: async () => {
      // All of them work in the data directory.
      for (const pid of await processesIn(dataDirectory)) await untilGone(pid);
    },
    start: async () => {
      child = await startServerProcess({
        argv: [
          join(binDirectory, 'postgres'),
          '-D',
          dataDirectory,
          '-c',
          `config_file=${configFile}`,
          ...Object.entries(layout.settings ?? {}).flatMap(([name, value]) => [
            '-c',
            `${name}=${value}`,
          ]),
        ],
        logFile,
        // Immediate: nothing is worth waiting for when the test is dead.
        deathSignal: 'QUIT',
        isReady: (childPid) => {
          const running = readPostmasterPid(dataDirectory);
          return running?.pid === childPid && running.isReady;
        },
      });
    },
    createTablespace: async (name, location) => {
      await makeDirectory(location);
      await server.query(
        `CREATE TABLESPACE ${pg.escapeIdentifier(name)} LOCATION ${pg.escapeLiteral(location)}`,
      );
    },
    [Symbol.asyncDispose]: async () => {
      await server.stop('immediate');
      await layout.onDispose();
    },
  };
  return server;
}

function majorOf(dataDirectory: string): number {
  return Number(readFileSync(join(dataDirectory, 'PG_VERSION'), 'utf8'));
}

/** mkdir -p as the parts' user, 0700 as PostgreSQL wants its own. */
export async function makeDirectory(path: string): Promise<void> {
  await runAsPartsUser(['mkdir', '-p', '-m', '0700', '--', path]);
}

async function moveWal(dataDirectory: string, walDirectory: string): Promise<void> {
  await makeDirectory(dirname(walDirectory));
  // That may be another filesystem.
  await runAsPartsUser(['mv', '--', join(dataDirectory, 'pg_wal'), walDirectory]);
  await symlink(walDirectory, join(dataDirectory, 'pg_wal'));
}

async function moveConfiguration(from: string, to: string): Promise<void> {
  await makeDirectory(to);
  for (const name of ['postgresql.conf', 'pg_hba.conf', 'pg_ident.conf']) {
    await rename(join(from, name), join(to, name));
  }
  await appendFile(
    join(to, 'postgresql.conf'),
    formatSettings({
      data_directory: from,
      hba_file: join(to, 'pg_hba.conf'),
      ident_file: join(to, 'pg_ident.conf'),
    }),
  );
}

async function writeHba(directory: string, lines: readonly string[] | undefined): Promise<void> {
  const loopback = [
    'host all all 127.0.0.1/32 trust',
    'host all all ::1/128 trust',
    'host replication all 127.0.0.1/32 trust',
  ];
  const text = ['local all all trust', 'local replication all trust', ...(lines ?? loopback)];
  await writePartsFile(join(directory, 'pg_hba.conf'), `${text.join('\n')}\n`);
}

function formatSettings(settings: Readonly<Record<string, string>>): string {
  return Object.entries(settings)
    .map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'\n`)
    .join('');
}

interface Postmaster {
  readonly pid: number;
  readonly port: number;
  readonly socketDirectory: string;
  readonly isReady: boolean;
}

/** Null if there is no live postmaster. */
function readPostmasterPid(dataDirectory: string): Postmaster | null {
  let text: string;
  try {
    text = readFileSync(join(dataDirectory, 'postmaster.pid'), 'utf8');
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return null;
    throw error;
  }
  const [pid = '', , , port = '', socketDirectory = '', , , status = ''] = text.split('\n');
  if (!existsSync(`/proc/${pid}`)) return null;
  return {
    pid: Number(pid),
    port: Number(port),
    socketDirectory,
    isReady: ['ready', 'standby'].includes(status.trim()),
  };
}

async function stopStranger(pid: number, signal: NodeJS.Signals): Promise<void> {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (codeOf(error) !== 'ESRCH') throw error;
  }
  await untilGone(pid);
}

async function processesIn(directory: string): Promise<readonly number[]> {
  const all = await listProcesses();
  const found = all.map(async ({ pid }) => {
    // It ended while we looked, or is none of ours.
    const itsOwn = await readlink(`/proc/${String(pid)}/cwd`).catch(() => null);
    return itsOwn === directory ? [pid] : [];
  });
  return (await Promise.all(found)).flat();
}

async function untilGone(pid: number): Promise<void> {
  const deadline = Date.now() + STOP_TIMEOUT_MS;
  while (existsSync(`/proc/${String(pid)}`)) {
    if (Date.now() > deadline) {
      process.kill(pid, 'SIGKILL');
      throw new Error(`the process ${String(pid)} of a server did not end within a minute`);
    }
    await delay(POLL_MS);
  }
}
