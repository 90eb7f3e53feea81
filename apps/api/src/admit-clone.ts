/**
 * What is checked before a clone is accepted: all that can be known without asking its host.
 *
 * The worker checks everything again and more, because it trusts nothing that it reads from Redis. What depends on its
 * disk, such as symbolic links in the target's path, only it can know.
 */
import {
  type Clone,
  CloneError,
  type CloneSpec,
  type Host,
  refuseForbiddenSettings,
} from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';

/**
 * Runs before the schema is applied, which would call the fields of such a source unknown.
 *
 * @throws {CloneError} `NOT_SUPPORTED` if the source is spelled out instead of named.
 */
export function refuseSpelledOutSource(body: unknown): void {
  const source = (body as { source?: unknown } | null | undefined)?.source;
  if (typeof source !== 'object' || source === null || !('host' in source)) return;
  throw new CloneError('NOT_SUPPORTED', 'source: a host in a request is not supported', {
    facts: { field: 'source.host' },
    hint: 'Name a source that the configuration of the worker lists under sources; `GET /v1/hosts` shows them.',
  });
}

/**
 * What depends on more than the request.
 *
 * @throws {CloneError} `REQUEST_INVALID` (deadline), `HOST_UNKNOWN`, `SOURCE_UNKNOWN`,
 *   `SETTING_FORBIDDEN`, `QUEUE_UNAVAILABLE`.
 */
export async function admitClone(spec: CloneSpec, store: CloneStore): Promise<void> {
  if (spec.deadline !== null && Date.parse(spec.deadline) <= Date.now()) {
    throw new CloneError('REQUEST_INVALID', 'deadline: lies in the past', {
      facts: { field: 'deadline' },
      hint: 'Give a time in the future, or leave the deadline out.',
    });
  }
  const host = await store.host(spec.target.host);
  if (host === undefined) {
    throw new CloneError('HOST_UNKNOWN', `no worker has registered for host ${spec.target.host}`, {
      facts: { host: spec.target.host },
      hint: 'Start `pgcloned worker` on that host, or take a name that `GET /v1/hosts` lists.',
    });
  }
  if (spec.source.clone === undefined) refuseUnknownSource(spec.source.name ?? '', host);
  else await refuseUnfitOrigin(spec.source.clone, { spec, store });
  refuseForbiddenSettings(spec.replica.settings, host.allowedSettings ?? []);
}

function refuseUnknownSource(name: string, { name: host, sources }: Host): void {
  if (sources.includes(name)) return;
  throw new CloneError('SOURCE_UNKNOWN', `host ${host} has no source ${name}`, {
    facts: { host, source: name },
    hint:
      sources.length === 0
        ? 'Add it under sources in the configuration of the worker on that host.'
        : `Take one of ${sources.join(', ')}, or add it under sources in the worker's configuration.`,
  });
}

/** Whether its server runs only its host can know. */
async function refuseUnfitOrigin(
  id: string,
  { spec, store }: { readonly spec: CloneSpec; readonly store: CloneStore },
): Promise<void> {
  const { host } = spec.target;
  if (spec.method !== 'reflink') {
    throw new CloneError('NOT_SUPPORTED', `method ${spec.method} does not clone a clone`, {
      facts: { field: 'method', value: spec.method },
      hint: 'Use method reflink, or configure the server of the clone as a source.',
    });
  }
  const origin = await store.get(id);
  const isThere = origin?.state === 'succeeded' && origin.host === host;
  if (isThere && hasServer(origin.instance)) return;
  throw new CloneError('SOURCE_UNKNOWN', `host ${host} has no clone ${id} that could be cloned`, {
    facts: { host, clone: id, state: origin?.state ?? null, cloneHost: origin?.host ?? null },
    hint: 'Name a clone on the same host that has succeeded, and that was not removed since.',
  });
}

const hasServer = ({ state }: Clone['instance']) => state === 'running' || state === 'stopped';
