/**
 * Whether the replica can stream from its source by itself: a tunnel to the database ends with the clone, the replica
 * streams from the address in its own `primary_conninfo`, and it may come as another user (`replication.user`).
 *
 * It will run on this host, so where this host is let in it is, too.
 */
import { once } from 'node:events';
import { connect } from 'node:net';
import { CloneError, type ServerAddress, toCloneError } from '@pgcloned/contract';
import { probeReplication, resolveConnection } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Findings, Seen } from '../preflight/check.ts';

/** A firewall that drops packets gives no answer. */
const CONNECT_LIMIT_MS = 3_000;

/**
 * @throws {CloneError} `SOURCE_UNREACHABLE`, and what stands against its user, if it cannot and shall be seen to stream: that
 *   would be waited for in vain.
 */
export async function checkOwnWay(
  run: CloneRun,
  { settings: { host, port, tunnelDirectory } }: Pick<Seen, 'settings'>,
  findings: Findings,
): Promise<void> {
  const { plan, signal } = run;
  if (tunnelDirectory === null || (await isReachable(host, port, signal))) {
    // Else it comes by the same way and as the same user as the clone.
    if (tunnelDirectory !== null || plan.source.replication.user !== null)
      await tryToStream(run, { host, port }, findings);
    return;
  }
  const where = `${host}:${String(port)}`;
  if (plan.spec.replica.waitFor !== 'streaming') {
    findings.notice({
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

async function tryToStream(
  { plan: { source, spec, password }, name, signal }: CloneRun,
  server: ServerAddress,
  { notice }: Findings,
): Promise<void> {
  const user = source.replication.user ?? source.user;
  const passFile = source.replication.passFile ?? source.passFile;
  // That of the environment is the cloning user's.
  const given = user === source.user && password !== null ? { password } : {};
  try {
    const settings = await resolveConnection({ ...source, ...server, user, passFile }, given);
    await probeReplication(settings, { applicationName: name, signal });
  } catch (error) {
    signal.throwIfAborted();
    if (spec.replica.waitFor === 'streaming') throw error;
    const { message, facts, hint, remedies } = toCloneError(error);
    notice({
      code: 'REPLICA_HAS_NO_WAY',
      message: `the replica will not stream as ${user}: ${message}`,
      ...{ facts, remedies },
      ...(hint !== null && { hint }),
    });
  }
}

async function isReachable(host: string, port: number, signal: AbortSignal): Promise<boolean> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(CONNECT_LIMIT_MS)]);
  const socket = connect({ host, port });
  try {
    await once(socket, 'connect', { signal: limit });
    return true;
  } catch {
    signal.throwIfAborted();
    // Refused, unknown or silent: the replica will not get there either.
    return false;
  } finally {
    socket.on('error', () => {});
    socket.destroy();
  }
}
