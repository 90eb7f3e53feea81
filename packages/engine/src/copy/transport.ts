/**
 * How files come: from an rsync daemon on a port of the source, or from rsyncs over connections of the OpenSSH client.
 *
 * Whoever copies need not know which of the two it is. Either way every connection leads to one address, so that a relay
 * can stand before it (`road.ts`).
 */
import { isDeepStrictEqual } from 'node:util';
import { type CloneError, portsOf, WORKERS_MAX } from '@pgcloned/contract';
import {
  type RsyncDaemon,
  startDaemon,
  type TransferEndpoint,
  type TransferOutcome,
  type TransferRequest,
  transfer,
  tryEndpoint,
} from '@pgcloned/rsync';
import { type BulkConnection, openBulkClient, type SshConnection } from '@pgcloned/ssh';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { makeTemporaryDirectory } from '../temporary-directory.ts';
import type { Endpoint } from './rate-relay.ts';

/** A directory of the source. */
export interface SourceDirectory {
  /** What a daemon calls it: letters, digits, `_` and `-`. */
  readonly module: string;
  readonly source: string;
}

export interface Transport extends Endpoint, AsyncDisposable {
  /** Settles with the reason when it has ended without being asked. */
  readonly lost: Promise<CloneError>;
  /** One transfer; those of one worker come one after the other. After a failure its next one gets a new connection. */
  readonly transfer: (request: DirectoryTransfer) => Promise<TransferOutcome>;
}

interface DirectoryTransfer extends Omit<TransferRequest, 'endpoint'> {
  readonly worker: number;
  readonly from: SourceDirectory;
  /** Where to connect: the transport's own address, or what forwards to it. */
  readonly through: Endpoint;
}

export async function openTransport(
  { plan, name, signal }: CloneRun,
  { host, temporaryWalDirectory }: Pick<Ready, 'host' | 'temporaryWalDirectory'>,
  directories: readonly SourceDirectory[],
): Promise<Transport> {
  if (plan.spec.transfer.transport === 'ssh')
    return await overSsh(host.ssh(), {
      parent: temporaryWalDirectory,
      silenceMs: plan.host.stallMs,
    });
  const { rsyncd } = plan.source;
  const { first, last } = portsOf(rsyncd.ports);
  return fromDaemon(
    await startDaemon(host.ssh(), {
      name,
      modules: directories.map(({ module, source }) => ({ name: module, path: source })),
      connectAddress: rsyncd.address ?? host.ssh().remoteAddress,
      bindAddress: rsyncd.address,
      ports: { first, last },
      // All that may ever be in use may end at once, and come back before the other side has seen them end (R6.13).
      connectionsMax: 2 * WORKERS_MAX,
      leaseMs: plan.host.leaseMs,
      directory: temporaryWalDirectory,
      signal,
    }),
  );
}

/** The daemon ends with it. */
export function fromDaemon(daemon: RsyncDaemon): Transport {
  const { address, port, user, password, lost } = daemon;
  return {
    ...{ address, port, lost },
    transfer: async ({ from: { module }, through, ...request }) => {
      const endpoint = { address: through.address, port: through.port, user, password, module };
      return await transfer({ ...request, endpoint: { kind: 'daemon', ...endpoint } });
    },
    [Symbol.asyncDispose]: async () => {
      await daemon[Symbol.asyncDispose]();
    },
  };
}

/**
 * One connection per worker, made when it has its first batch: nothing runs on the source before.
 *
 * @param o As of `openBulkClient`.
 */
export async function overSsh(
  { terms, closed }: SshConnection,
  o: { readonly parent: string; readonly silenceMs: number },
): Promise<Transport> {
  const client = await openBulkClient(terms, o);
  const connections = new Map<number, BulkConnection & { readonly through: Endpoint }>();
  const drop = async (worker: number) => {
    const connection = connections.get(worker);
    connections.delete(worker);
    await connection?.[Symbol.asyncDispose]();
  };
  const connect = async (worker: number, through: Endpoint, signal: AbortSignal) => {
    const known = connections.get(worker);
    if (known !== undefined && !known.hasEnded() && isDeepStrictEqual(known.through, through))
      return known;
    await drop(worker);
    const connection = { ...(await client.connect({ through, signal })), through };
    connections.set(worker, connection);
    return connection;
  };
  return {
    ...{ address: terms.address, port: terms.port },
    // What is read beside the files needs the other connection, so without it this one is of no use.
    lost: closed.then(async (error) => error ?? (await new Promise<never>(() => {}))),
    transfer: async ({ worker, from, through: { address, port }, ...request }) => {
      const connection = await connect(worker, { address, port }, request.signal);
      try {
        return await transfer({ ...request, endpoint: sshEndpoint(connection, from.source) });
      } catch (error) {
        // One that is broken may not know it yet.
        await drop(worker);
        throw error;
      }
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all([...connections.keys()].map(drop));
      await client[Symbol.asyncDispose]();
    },
  };
}

/**
 * Whether files can come, as far as that can be told before anything is done: a daemon is only started for the copy.
 *
 * @throws {CloneError} What stands in the way.
 */
export async function tryTransport(
  { plan, signal }: CloneRun,
  { ssh, dataDirectory }: { readonly ssh: SshConnection; readonly dataDirectory: string },
): Promise<void> {
  if (plan.spec.transfer.transport !== 'ssh') return;
  const { stallMs } = plan.host;
  await using temporary = await makeTemporaryDirectory();
  const options = { parent: temporary.path, silenceMs: stallMs };
  await using client = await openBulkClient(ssh.terms, options);
  await using connection = await client.connect({ through: ssh.terms, signal });
  await tryEndpoint(sshEndpoint(connection, dataDirectory), { timeoutMs: stallMs, signal });
}

function sshEndpoint({ remoteShell, directory }: BulkConnection, source: string): TransferEndpoint {
  return { kind: 'ssh', remoteShell, workingDirectory: directory, directory: source };
}
