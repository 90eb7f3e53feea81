/** Starts the server of a published clone, as this host starts servers. */
import { join } from 'node:path';
import { effectiveSettings, type PostmasterPid, startServer } from '@pgcloned/postgres';
import type { HostPolicy } from '../plan.ts';

/** @throws {CloneError} What `startServer` throws. */
export async function startReplicaServer({
  host,
  ...server
}: {
  readonly host: Pick<HostPolicy, 'start' | 'stallMs'>;
  readonly binDirectory: string;
  readonly dataDirectory: string;
  /** Where the configuration lies outside the data directory; null: inside. */
  readonly configFile: string | null;
  readonly major: number;
  readonly signal: AbortSignal;
}): Promise<PostmasterPid & { readonly port: number }> {
  const { port } = await effectiveSettings({ ...server, names: ['port'] });
  const postmaster = await startServer({
    ...server,
    method: host.start,
    port: Number(port),
    logFile: startLogOf(server.dataDirectory),
    stallMs: host.stallMs,
  });
  return { ...postmaster, port: Number(port) };
}

/** Where the server writes until its own configuration says otherwise. */
export function startLogOf(dataDirectory: string): string {
  return join(dataDirectory, 'pgcloned.start.log');
}
