/**
 * One SSH connection for control: strict host keys, keepalive, no Nagle.
 *
 * The files never go through it (it would keep our only thread busy): that is rsync's own TCP connection, or the ssh
 * client of OpenSSH (`bulk-client.ts`). SQL and WAL may. A connection that goes silent is noticed after 40 s by its keepalive
 * and then lost for everyone who waits on it.
 */
import { addAbortListener } from 'node:events';
import { createConnection } from 'node:net';
import type { Duplex } from 'node:stream';
import { CloneError } from '@pgcloned/contract';
import type { ProcessRunner } from '@pgcloned/process';
import ssh2 from 'ssh2';
import type { Session } from './channel.ts';
import { AGENT, type ClientKey, readClientKeys } from './client-keys.ts';
import { type ForwardTarget, openForward } from './forward.ts';
import { judgeHostKey, type KnownHostKeys, knownHostKeys, typesOf } from './known-hosts.ts';
import { runCommand, startCommand } from './remote-command.ts';
import { factsOf, labelOf, type SshTarget } from './ssh-target.ts';

const CONNECT_TIMEOUT_MS = 20_000;
const KEEPALIVE_INTERVAL_MS = 10_000;
const KEEPALIVE_COUNT_MAX = 3;

/** How long the other side may take to close its end after we have said goodbye. */
const GOODBYE_MS = 2_000;

export interface SshConnection extends ProcessRunner, AsyncDisposable {
  /** The IP address that the connection reached, without port. */
  readonly remoteAddress: string;
  /** Our own address of that connection. */
  readonly localAddress: string;
  /** A TCP connection that the SSH server makes, see `openForward`. */
  readonly forward: (target: ForwardTarget, signal: AbortSignal) => Promise<Duplex>;
  /** Settles (never rejects) once the connection is gone: with the reason, or null if it was disposed. */
  readonly closed: Promise<CloneError | null>;
  readonly terms: SshTerms;
}

/** How a connection came about: what it takes to come to the same host again, as the same user. */
export interface SshTerms {
  readonly address: string;
  readonly port: number;
  readonly user: string;
  /** The one that the host has proved to own. */
  readonly hostKey: Buffer;
  /** The key that let us in is in this file; null: the agent has it. */
  readonly privateKeyFile: string | null;
  readonly agentSocket: string | null;
}

/**
 * Connects and authenticates.
 *
 * @param options.timeoutMs For everything from the look-up of the name to the end of the authentication. Default: 20 s.
 * @throws {CloneError} `SSH_UNREACHABLE`, `SSH_HOST_KEY_UNKNOWN`, `SSH_HOST_KEY_MISMATCH`, `SSH_AUTHENTICATION_FAILED`.
 */
export async function connectSsh(
  target: SshTarget,
  options: { readonly signal: AbortSignal; readonly timeoutMs?: number },
): Promise<SshConnection> {
  const { signal, timeoutMs = CONNECT_TIMEOUT_MS } = options;
  signal.throwIfAborted();
  const clientKeys = await readClientKeys(target);
  const hostKeys = target.insecure ? null : await knownHostKeys(target, { signal });

  const attempt = openConnection(target, { clientKeys, hostKeys });
  const { client, socket, ready, closed } = attempt;
  const timer = setTimeout(() => {
    attempt.fail(new Error(`no answer within ${String(timeoutMs / 1000)} s`));
  }, timeoutMs);
  using _ = addAbortListener(signal, () => {
    attempt.fail(signal.reason as Error);
  });
  const isReady = await Promise.race([ready.then(() => true), closed.then(() => false)]);
  clearTimeout(timer);
  if (signal.aborted) {
    socket.destroy();
    await closed;
    throw signal.reason;
  }
  if (!isReady) throw attempt.whyNot();
  // A closed socket forgets its addresses.
  const { remoteAddress = '', localAddress = '' } = socket;
  const { hostKey, clientKey } = attempt.proofs();

  let isDisposed = false;
  let lost: CloneError | null = null;
  const gone = closed.then(() => {
    lost = new CloneError('SOURCE_LOST', `the SSH connection to ${target.host} was lost`, {
      facts: {
        ...factsOf(target),
        reason: isDisposed
          ? 'closed by us'
          : (attempt.failure()?.message ?? 'closed by the server'),
      },
      cause: attempt.failure(),
    });
    return isDisposed ? null : lost;
  });
  const session: Session = { client, lost: () => lost };
  const label = labelOf(target);
  return {
    label,
    remoteAddress,
    localAddress,
    closed: gone,
    terms: {
      address: remoteAddress,
      port: target.port,
      user: target.user,
      hostKey,
      privateKeyFile: clientKey.name === AGENT ? null : clientKey.name,
      agentSocket: clientKey.name === AGENT ? target.agentSocket : null,
    },
    run: (command, runOptions) => runCommand(session, command, runOptions),
    start: (command, startOptions) => startCommand(session, command, startOptions),
    forward: async (to, forwardSignal) =>
      await openForward(session, { target: to, label, signal: forwardSignal }),
    [Symbol.asyncDispose]: async () => {
      isDisposed = true;
      client.end();
      const goodbye = setTimeout(() => socket.destroy(), GOODBYE_MS);
      await gone;
      clearTimeout(goodbye);
    },
  };
}

/** A connection under way. The first failure wins and ends it; `closed` settles once its socket is gone. */
function openConnection(
  target: SshTarget,
  keys: { readonly clientKeys: readonly ClientKey[]; readonly hostKeys: KnownHostKeys | null },
) {
  const { host, port, user } = target;
  const { clientKeys, hostKeys } = keys;
  const socket = createConnection({
    host,
    port,
    noDelay: true,
    keepAlive: true,
    keepAliveInitialDelay: KEEPALIVE_INTERVAL_MS,
  });
  const client = new ssh2.Client();
  const ready = Promise.withResolvers<undefined>();
  const closed = Promise.withResolvers<undefined>();
  let stage: 'connecting' | 'handshake' | 'authentication' = 'connecting';
  let failure: Error | undefined;
  let hostKey: Buffer | undefined;
  const untriedKeys = [...clientKeys];
  let clientKey: ClientKey | undefined;
  const fail = (error: Error) => {
    failure ??= error;
    socket.destroy();
  };

  client.once('connect', () => {
    stage = 'handshake';
  });
  client.once('handshake', () => {
    stage = 'authentication';
  });
  client.once('ready', () => {
    ready.resolve(undefined);
  });
  client.on('error', (error: Error & { level?: string }) => {
    // An agent that is away or a key that cannot sign leaves the others to try.
    if (error.level === 'agent' || /^Error (while )?signing/.test(error.message)) return;
    fail(error);
  });
  client.once('close', () => {
    closed.resolve(undefined);
  });
  client.connect({
    sock: socket,
    username: user,
    authHandler: (_methodsLeft, _isPartial, next) => {
      clientKey = untriedKeys.shift();
      // False is for ssh2 the end of the list; its types do not know that.
      next(clientKey?.method ?? (false as never));
    },
    keepaliveInterval: KEEPALIVE_INTERVAL_MS,
    keepaliveCountMax: KEEPALIVE_COUNT_MAX,
    readyTimeout: 0,
    ...(hostKeys !== null && {
      algorithms: { serverHostKey: hostKeyAlgorithms(typesOf(hostKeys)) },
    }),
    hostVerifier: (offered: Buffer) => {
      hostKey = offered;
      const problem = hostKeys === null ? null : judgeHostKey(offered, hostKeys, target);
      if (problem !== null) failure ??= problem;
      return problem === null;
    },
  });

  return {
    client,
    socket,
    ready: ready.promise,
    closed: closed.promise,
    fail,
    failure: () => failure,
    /** Of a connection that is ready. */
    proofs: () => {
      if (hostKey === undefined || clientKey === undefined)
        throw new Error('an SSH connection without keys');
      return { hostKey, clientKey };
    },
    whyNot: () => explain(failure, { stage, target, clientKeys }),
  };
}

function explain(
  failure: Error | undefined,
  {
    stage,
    target,
    clientKeys,
  }: {
    readonly stage: 'connecting' | 'handshake' | 'authentication';
    readonly target: SshTarget;
    readonly clientKeys: readonly ClientKey[];
  },
): CloneError {
  if (failure instanceof CloneError) return failure;
  const { host, port, user } = target;
  const reason = failure?.message ?? 'the server closed the connection';
  const facts = { ...factsOf(target), reason };
  const isRefused = /authentication methods failed|too many authentication failures/i.test(reason);
  if (isRefused) {
    const [first] = clientKeys.filter(({ name }) => name !== AGENT);
    const publicKey = first?.publicKey ?? null;
    return new CloneError('SSH_AUTHENTICATION_FAILED', `${host} does not let ${user} in over SSH`, {
      facts: { ...facts, keysTried: clientKeys.map(({ name }) => name).join(', ') },
      hint: `Add the public key${first === undefined ? '' : ` of ${first.name}`} to the authorized_keys of ${user} on ${host}, or name another key (ssh.privateKeyFile).`,
      remedies:
        publicKey === null
          ? []
          : [
              {
                kind: 'append',
                on: 'source',
                where: `~${user}/.ssh/authorized_keys`,
                text: publicKey,
              },
            ],
      cause: failure,
    });
  }
  const what = {
    connecting: 'cannot connect',
    handshake: 'the SSH handshake failed',
    authentication: 'the SSH connection broke during authentication',
  }[stage];
  return new CloneError('SSH_UNREACHABLE', `${what} to ${host} port ${String(port)}`, {
    facts,
    hint: `Check that sshd runs on ${host}, that it listens on port ${String(port)}, and that no firewall stands between.`,
    cause: failure,
  });
}

const HOST_KEY_ALGORITHMS: readonly ssh2.ServerHostKeyAlgorithm[] = [
  'ssh-ed25519',
  'ecdsa-sha2-nistp256',
  'ecdsa-sha2-nistp384',
  'ecdsa-sha2-nistp521',
  'rsa-sha2-512',
  'rsa-sha2-256',
];

/** Those of known keys first: the server answers with the first that it has. An RSA key signs by two algorithms. */
function hostKeyAlgorithms(knownTypes: readonly string[]): ssh2.ServerHostKeyAlgorithm[] {
  const isKnown = (algorithm: string) =>
    knownTypes.includes(algorithm.startsWith('rsa-') ? 'ssh-rsa' : algorithm);
  return [
    ...HOST_KEY_ALGORITHMS.filter(isKnown),
    ...HOST_KEY_ALGORITHMS.filter((algorithm) => !isKnown(algorithm)),
  ];
}
