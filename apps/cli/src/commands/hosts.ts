/** `pgcloned host`: the hosts that receive clones, through the API. */
import { formatBytes } from '@pgcloned/contract';
import { ask, findApi } from '../api-connection.ts';
import type { GlobalOptions, Invocation } from '../invocation.ts';
import { print, printJson } from '../output.ts';
import { formatTable } from '../table.ts';

export async function listHosts(
  { environment, signal }: Invocation,
  { config, json }: GlobalOptions,
): Promise<void> {
  const api = await findApi(environment, config);
  const { hosts } = await ask(signal, (limit) => api.http.GET('/v1/hosts', { signal: limit }));
  if (json === true) for (const host of hosts) printJson(host);
  else {
    print(
      formatTable(
        ['HOST', 'STATE', 'VERSION', 'POSTGRESQL', 'CLONES', 'FREE', 'SOURCES', 'LAST SEEN'],
        hosts.map((host) => [
          host.name,
          host.online ? 'online' : 'offline',
          host.version,
          host.postgresMajors.join(' '),
          `${String(host.runningClones.length)} of ${String(host.concurrency)}`,
          host.filesystems
            .map(({ path, freeBytes }) => `${formatBytes(freeBytes)} in ${path}`)
            .join(', '),
          host.sources.join(' '),
          host.lastSeenAt,
        ]),
      ),
    );
  }
}
