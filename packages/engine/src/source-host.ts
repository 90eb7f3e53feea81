/**
 * The host of the source, by SSH: one connection at a time, which can be opened again when it was lost.
 *
 * The loss of a connection is no end by itself: it fails the commands that run over it, and whoever runs them decides.
 */
import type { ServerAddress } from '@pgcloned/contract';
import { connectSsh, type SshConnection } from '@pgcloned/ssh';
import type { CloneRun } from './clone-run.ts';

export interface SourceHost {
  /** As it is connected to, for messages. */
  readonly host: string;
  readonly ssh: () => SshConnection;
  /** Opens a new connection if the present one is lost. */
  readonly reopen: (signal: AbortSignal) => Promise<void>;
  readonly close: () => Promise<void>;
}

/** What of a run it takes to reach a source. */
export type SourceRun = Pick<CloneRun, 'plan' | 'signal' | 'cleanup'>;

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
