/**
 * Whether the replica can reach its source by itself: a tunnel to the database ends with the clone, and the replica
 * streams from the address in its own `primary_conninfo`.
 *
 * It will run on this host, so what this host reaches it reaches, too. Only the way is looked at, since it may come as
 * another user.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { CloneError } from '@pgcloned/contract';
import type { CloneRun } from '../clone-run.ts';
import type { Findings, Seen } from '../preflight/check.ts';

/** A firewall that drops packets gives no answer. */
const CONNECT_LIMIT_MS = 3_000;

/** @throws {CloneError} `SOURCE_UNREACHABLE` if it cannot, and shall be seen to stream: that would be waited for in vain. */
export async function checkOwnWay(
  { plan, signal }: CloneRun,
  { settings: { host, port, tunnelDirectory } }: Pick<Seen, 'settings'>,
  { notice }: Findings,
): Promise<void> {
  if (tunnelDirectory === null || (await isReachable(host, port, signal))) return;
  const where = `${host}:${String(port)}`;
  if (plan.spec.replica.waitFor !== 'streaming') {
    notice({
      code: 'REPLICA_HAS_NO_WAY',
      message: `the replica cannot reach ${where} from here: the tunnel ends with the clone, and it will not stream before it has a way of its own (primary_conninfo)`,
    });
    return;
  }
  throw new CloneError('SOURCE_UNREACHABLE', `the replica could not stream from ${where}`, {
    facts: { host, port, waitFor: 'streaming' },
    hint: `The tunnel through SSH ends with the clone. Open port ${String(port)} of ${host} for this host, or ask for waitFor: consistent and give the replica another way (primary_conninfo) yourself.`,
  });
}

async function isReachable(host: string, port: number, signal: AbortSignal): Promise<boolean> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(CONNECT_LIMIT_MS)]);
  const socket = connect({ host, port });
  try {
    await once(socket, 'connect', { signal: limit });
    return true;
  } catch {
    signal.throwIfAborted();
    return false;
  } finally {
    socket.on('error', () => {});
    socket.destroy();
  }
}
