/**
 * The host of the source, by SSH: one connection at a time, which can be opened again when it was lost.
 *
 * The loss of a connection is no end by itself: it fails the commands that run over it, and whoever runs them decides.
 */
import { connectSsh, type SshConnection } from '@pgcloned/ssh';
import type { CloneRun } from './clone-run.ts';

export interface SourceHost {
  readonly ssh: () => SshConnection;
  /** Opens a new connection if the present one is lost. */
  readonly reopen: (signal: AbortSignal) => Promise<void>;
  readonly close: () => Promise<void>;
}

/** What of a run it takes to reach a source. */
export type SourceRun = Pick<CloneRun, 'plan' | 'signal' | 'cleanup'>;

export async function openSourceHost(run: SourceRun): Promise<SourceHost> {
  let current = await connect(run, run.signal);
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
    current = await connect(run, signal);
    watch(current);
  };
  let opening: Promise<void> | null = null;
  const host: SourceHost = {
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
    undo: host.close,
  });
  return host;
}

async function connect({ plan }: SourceRun, signal: AbortSignal): Promise<SshConnection> {
  const { source, host } = plan;
  return await connectSsh(
    {
      host: source.ssh.host ?? source.host,
      port: source.ssh.port,
      user: source.ssh.user,
      privateKeyFile: source.ssh.privateKeyFile,
      defaultKeyFiles: source.ssh.privateKeyFile === null ? host.defaultSshKeyFiles : [],
      agentSocket: source.ssh.agent ? host.sshAgentSocket : null,
      knownHostsFiles:
        source.ssh.knownHostsFile === null
          ? host.defaultKnownHostsFiles
          : [source.ssh.knownHostsFile],
      insecure: source.ssh.insecure,
    },
    { signal },
  );
}
