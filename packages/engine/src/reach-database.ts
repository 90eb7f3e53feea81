/** How the database of a source is connected to: by its own port, or through an SSH connection that is opened for it. */
import { type ConnectionSettings, resolveConnection } from '@pgcloned/postgres';
import { openDatabaseTunnel } from './database-tunnel.ts';
import { openSourceHost, type SourceRun } from './source-host.ts';

/**
 * Nothing is asked of the database yet. What is opened ends with the run's cleanup.
 *
 * @param dataDirectory The target, which must be locked.
 * @throws {CloneError} What the configuration, SSH and the tunnel have to say.
 */
export async function reachDatabase(
  run: SourceRun,
  dataDirectory: string,
): Promise<ConnectionSettings> {
  const { source, password } = run.plan;
  const address = await resolveConnection(source, password === null ? {} : { password });
  if (!source.ssh.tunnelDatabase) return address;
  const host = await openSourceHost(run);
  return await openDatabaseTunnel(run, { host, address, dataDirectory });
}
