/**
 * The hosts that have ever registered, and which of them are alive.
 *
 * A worker says with every heartbeat what its host is and has. Time is that of Redis, so that the clocks of the hosts do
 * not matter. A host is never forgotten: a clone for one that is away may wait for it.
 */
import { type Host, HostFacts } from '@pgcloned/contract';
import type { Redis } from 'ioredis';
import { HOSTS_KEY, hostKey } from './keys.ts';
import { parsedJson } from './parsed-json.ts';
import { ask } from './redis-connection.ts';

export const HEARTBEAT_MS = 5_000;

/** Three heartbeats may get lost before a host counts as gone. */
export const ONLINE_MS = 3 * HEARTBEAT_MS + 1_000;

export interface KnownHost {
  readonly facts: HostFacts;
  readonly online: boolean;
  readonly lastSeenAt: string;
}

export async function readHosts(redis: Redis): Promise<ReadonlyMap<string, KnownHost>> {
  const names = await ask(redis.smembers(HOSTS_KEY));
  const hosts = await Promise.all(names.map(async (name) => await readHost(redis, name)));
  const known = hosts.filter((host) => host !== undefined);
  return new Map(known.map((host) => [host.facts.name, host]));
}

export async function readHost(redis: Redis, name: string): Promise<KnownHost | undefined> {
  const [[facts, seenAt, left], [seconds, microseconds]] = await Promise.all([
    ask(redis.hmget(hostKey(name), 'facts', 'seenAt', 'left')),
    ask(redis.time()),
  ]);
  if (typeof facts !== 'string') return undefined;
  // A worker of another version may say it in another way; then we do not know the host.
  const parsed = HostFacts.safeParse(parsedJson(facts));
  if (!parsed.success) return undefined;
  const nowMs = Number(seconds) * 1000 + Number(microseconds) / 1000;
  return {
    facts: parsed.data,
    online: left === '0' && nowMs - Number(seenAt) < ONLINE_MS,
    lastSeenAt: new Date(Number(seenAt)).toISOString(),
  };
}

export function presentHost({ facts, online, lastSeenAt }: KnownHost): Host {
  const { machineId: _machineId, workerId: _workerId, ...shown } = facts;
  return { ...shown, online, lastSeenAt };
}
