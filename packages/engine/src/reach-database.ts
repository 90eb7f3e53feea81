/** How the database of a source is connected to: by its own port, or through an SSH connection that is opened for it. */
import type { ServerAddress } from '@pgcloned/contract';
import { type ConnectionSettings, resolveConnection } from '@pgcloned/postgres';
import { openDatabaseTunnel } from './database-tunnel.ts';
import type { ClonePlan } from './plan.ts';
import { openSourceHost, type SourceRun } from './source-host.ts';

/**
 * Nothing is asked of the database yet. What is opened ends with the run's cleanup.
 *
 * @param o.dataDirectory The target, which must be locked; null: it is not.
 * @throws {CloneError} What the configuration, SSH and the tunnel have to say.
 */
export async function reachDatabase(
  run: SourceRun,
  {
    server,
    dataDirectory,
  }: { readonly server: ServerAddress; readonly dataDirectory: string | null },
): Promise<ConnectionSettings> {
  const address = await addressOf(run.plan, server);
  if (!run.plan.source.ssh.tunnelDatabase) return address;
  const host = await openSourceHost(run, server);
  return await openDatabaseTunnel(run, { host, address, dataDirectory });
}

/** With the password for this server. */
export async function addressOf(
  { source, password }: ClonePlan,
  server: ServerAddress,
): Promise<ConnectionSettings> {
  return await resolveConnection({ ...source, ...server }, password === null ? {} : { password });
}
