/** Starts the server of a published clone, as this host starts servers. */
import { join } from 'node:path';
import { effectiveSettings, type PostmasterPid, startServer } from '@pgcloned/postgres';
import type { HostPolicy } from '../plan.ts';

/** @throws {CloneError} What `startServer` throws. */
export async function startReplicaServer({
  host,
  port: known = null,
  ...server
}: {
  readonly host: Pick<HostPolicy, 'start' | 'stallMs'>;
  readonly binDirectory: string;
  readonly dataDirectory: string;
  /** Where the configuration lies outside the data directory; null: inside. */
  readonly configFile: string | null;
  readonly major: number;
  /** What its configuration says, if that is known. */
  readonly port?: number | null;
  readonly signal: AbortSignal;
}): Promise<PostmasterPid & { readonly port: number }> {
  const port = known ?? Number((await effectiveSettings({ ...server, names: ['port'] })).port);
  const postmaster = await startServer({
    ...server,
    method: host.start,
    port,
    logFile: startLogOf(server.dataDirectory),
    stallMs: host.stallMs,
  });
  return { ...postmaster, port };
}

/** Where the server writes until its own configuration says otherwise. */
export function startLogOf(dataDirectory: string): string {
  return join(dataDirectory, 'pgcloned.start.log');
}
