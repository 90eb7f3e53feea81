/**
 * The host of the source: this one, or another by SSH with one connection at a time, which can be opened again when it was
 * lost.
 *
 * The loss of a connection is no end by itself: it fails the commands that run over it, and whoever runs them decides.
 */
import type { ServerAddress } from '@pgcloned/contract';
import { type CommandRunner, localRunner } from '@pgcloned/process';
import { connectSsh, type SshConnection } from '@pgcloned/ssh';
import type { CloneRun } from './clone-run.ts';
import { isOwnAddress } from './own-address.ts';

export interface SourceHost {
  /** As it is connected to, for messages. */
  readonly host: string;
  /** Whether it is this machine. */
  readonly isHere: boolean;
  /** Runs commands there, and so reads files. */
  readonly runner: () => CommandRunner;
  /**
   * For what only a connection can do: that files come over a network.
   *
   * @throws {Error} If there is none, for a source that is configured as local: our bug.
   */
  readonly ssh: () => SshConnection;
  /** Opens a new connection if the present one is lost. */
  readonly reopen: (signal: AbortSignal) => Promise<void>;
  readonly close: () => Promise<void>;
}

/** What of a run it takes to reach a source. */
export type SourceRun = Pick<CloneRun, 'plan' | 'signal' | 'cleanup'>;

/** For a source that is configured as local: nothing is opened, and nothing can be lost. */
export const OWN_HOST: SourceHost = {
  host: 'this host',
  isHere: true,
  runner: () => localRunner,
  ssh: () => {
    throw new Error('a local source is not reached by SSH');
  },
  reopen: async () => {},
  close: async () => {},
};

/** @param server The database, on whose host SSH is expected unless `ssh.host` says otherwise. */
export async function openSourceHost(
  run: SourceRun,
  server: Pick<ServerAddress, 'host'>,
): Promise<SourceHost> {
  const host = run.plan.source.ssh.host ?? server.host;
  let current = await connect(run, host, run.signal);
  let isLost = false;
  const watch = (connection: SshConnection) => {
    isLost = false;
    void connection.closed.then(() => {
      isLost ||= connection === current;
    });
  };
  watch(current);
  const open = async (signal: AbortSignal) => {
    await current[Symbol.asyncDispose]();
    current = await connect(run, host, signal);
    watch(current);
  };
  let opening: Promise<void> | null = null;
  const opened: SourceHost = {
    host,
    isHere: isOwnAddress(current.remoteAddress),
    runner: () => current,
    ssh: () => current,
    reopen: async (signal) => {
      if (!isLost) return;
      opening ??= open(signal).finally(() => {
        opening = null;
      });
      await opening;
    },
    close: async () => {
      await current[Symbol.asyncDispose]();
    },
  };
  run.cleanup.always({
    what: `SSH connection to ${current.label}`,
    remedy: `kill ${String(process.pid)}`,
    undo: opened.close,
  });
  return opened;
}

async function connect(
  { plan: { source, host: policy } }: Pick<SourceRun, 'plan'>,
  host: string,
  signal: AbortSignal,
): Promise<SshConnection> {
  return await connectSsh(
    {
      host,
      port: source.ssh.port,
      user: source.ssh.user,
      privateKeyFile: source.ssh.privateKeyFile,
      defaultKeyFiles: source.ssh.privateKeyFile === null ? policy.defaultSshKeyFiles : [],
      agentSocket: source.ssh.agent ? policy.sshAgentSocket : null,
      knownHostsFiles:
        source.ssh.knownHostsFile === null
          ? policy.defaultKnownHostsFiles
          : [source.ssh.knownHostsFile],
      insecure: source.ssh.insecure,
    },
    { signal },
  );
}
