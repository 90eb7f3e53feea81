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
  readonly reopen: () => Promise<void>;
  readonly close: () => Promise<void>;
}

export async function openSourceHost(run: CloneRun): Promise<SourceHost> {
  let current = await connect(run);
  let isLost = false;
  const watch = (connection: SshConnection) => {
    isLost = false;
    void connection.closed.then(() => {
      isLost ||= connection === current;
    });
  };
  watch(current);
  const host: SourceHost = {
    ssh: () => current,
    reopen: async () => {
      if (!isLost) return;
      await current[Symbol.asyncDispose]();
      current = await connect(run);
      watch(current);
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

async function connect({ plan, signal }: CloneRun): Promise<SshConnection> {
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
