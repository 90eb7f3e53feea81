/**
 * A server on a data directory that nobody but us can reach, for as long as we look at it.
 *
 * It listens on one unix socket only, in a directory of ours, and believes whoever comes through it; it neither streams nor
 * archives. Unlike a replica it is our child: if we die, the kernel kills it, and its own processes see that and end.
 */
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { describeExit, type Exit, startProcess, writeDurably } from '@pgcloned/process';
import type { ConnectionSettings } from './connection-settings.ts';
import { isServerRunning } from './postmaster-pid.ts';

/** Of a socket in a directory of its own. */
const PORT = 5432;

/** It writes down all that it has replayed before it ends, however long the disk takes; then it is killed. */
const STOP_MS_MAX = 600_000;

export interface PrivateServer {
  /** Of the postmaster. */
  readonly pid: number;
  readonly connection: (as: {
    readonly user: string;
    readonly database: string;
  }) => ConnectionSettings;
  /** Settles when it has ended, and never rejects. */
  readonly exited: Promise<Exit>;
  /** The last lines of its log. */
  readonly log: () => string;
  /** In order, so that the next start has little to replay. Settles once it has ended. */
  readonly stop: () => Promise<void>;
  /** Without writing anything down, as `pg_ctl stop -m immediate` does. Settles once it has ended. */
  readonly abandon: () => Promise<void>;
}

/**
 * Settles once it runs, long before it takes sessions.
 *
 * @param o.directory For its socket; of mode 0700 and with a short path.
 * @throws {CloneError} `TARGET_IN_USE`, `TOOL_MISSING`.
 */
export async function startPrivateServer({
  binDirectory,
  dataDirectory,
  configFile,
  directory,
  hotStandby,
  inheritedFds,
}: {
  readonly binDirectory: string;
  readonly dataDirectory: string;
  /** Where the configuration lies outside the data directory; null: inside. */
  readonly configFile: string | null;
  readonly directory: string;
  /** Whether it takes sessions that read before recovery has ended. */
  readonly hotStandby: boolean;
  readonly inheritedFds: readonly number[];
}): Promise<PrivateServer> {
  const other = await isServerRunning(dataDirectory);
  if (other !== null) {
    throw new CloneError('TARGET_IN_USE', 'a server runs on the data directory already', {
      facts: { dataDirectory, pid: other.pid },
      hint: 'Whatever starts servers by itself has to wait until the clone has succeeded.',
    });
  }
  const hbaFile = join(directory, 'pg_hba.conf');
  await writeDurably(hbaFile, 'local all all trust\n');
  const settings: Readonly<Record<string, string>> = {
    ...(configFile !== null && { config_file: configFile }),
    hba_file: hbaFile,
    listen_addresses: '',
    unix_socket_directories: directory,
    unix_socket_permissions: '0700',
    unix_socket_group: '',
    port: String(PORT),
    external_pid_file: '',
    ssl: 'off',
    hot_standby: hotStandby ? 'on' : 'off',
    // What is changed here is counted, whatever the configuration wants.
    track_counts: 'on',
    // An ANALYZE that began before a change would write down after it what was there.
    autovacuum: 'off',
    // Whatever looks into it is waited for, or replay would end it after half a minute.
    max_standby_archive_delay: '-1',
    max_standby_streaming_delay: '-1',
    primary_conninfo: '',
    primary_slot_name: '',
    archive_mode: 'off',
    logging_collector: 'off',
    log_destination: 'stderr',
    lc_messages: 'C',
  };
  const child = await startProcess(
    {
      file: join(binDirectory, 'postgres'),
      args: [
        ...['-D', dataDirectory],
        ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ],
      cwd: '/',
      env: { LC_ALL: 'C' },
      inheritedFds,
    },
    { killAfterMs: STOP_MS_MAX },
  );
  return {
    pid: child.pid,
    connection: ({ user, database }) => ({
      ...{ host: directory, port: PORT, tunnelDirectory: null, user, database },
      ...{ password: null, passFileRefused: null, sslmode: 'disable', sslRootCertFile: null },
    }),
    exited: child.exited,
    log: child.stderrTail,
    stop: async () => {
      const exit = await child.stop('SIGINT');
      if (exit.status === 0) return;
      throw new CloneError('PROCESS_FAILED', `postgres ended with ${describeExit(exit)}`, {
        facts: { dataDirectory, log: child.stderrTail() },
      });
    },
    abandon: async () => {
      await child.stop('SIGQUIT');
    },
  };
}
