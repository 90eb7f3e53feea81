/**
 * The one-shot rsync daemon on the source host.
 *
 * It lives on a lease: the wrapper in `remote.sh` ends it with all its connections and removes its directory when we say
 * so, when our connection ends, or when our heartbeat stays away for `leaseMs`. Its password exists in its directory and
 * in our memory only. The data is not encrypted on its way; the daemon is read-only, authenticated, bound to one
 * address and open to ours alone (R7.1).
 *
 * rsync takes no port 0 and says "listening" before it has bound (R7.4). So random ports are tried until one serves
 * our nonce through an authenticated connection: that proves the port, the way through the firewalls, and that
 * the server is ours and not somebody else's who had the port before.
 */
import { randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { addAbortListener, once } from 'node:events';
import { readFile, rm } from 'node:fs/promises';
import { isIPv6 } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import {
  describeExit,
  type Finished,
  type ProcessRunner,
  runProcess,
  unlessAborted,
} from '@pgcloned/process';
import { refuseFullTarget } from './exit-explanation.ts';
import { remoteCommand } from './remote-script.ts';
import { rsyncUrl } from './rsync-url.ts';
import { withLimit } from './waiting.ts';

/** Of five heartbeats four may be late. */
const HEARTBEATS_PER_LEASE = 5;

/** A shell makes a directory; more than this and the login shell hangs. */
const WRAPPER_LIMIT_MS = 20_000;

/** rsync listens some milliseconds after its start, on a loaded host a second or two. */
const LISTEN_LIMIT_MS = 5_000;
const LISTEN_POLL_MS = 20;

/** Whoever holds a port already may answer before the news that our rsync did not get it. */
const PORT_TAKEN_NEWS_MS = 2_000;

/** A firewall that drops packets lets a connection wait for minutes. */
const CONNECT_LIMIT_SECONDS = 10;

/** When a hundred random ports of the range are taken, the range is the problem. */
const PORTS_TRIED_MAX = 100;

/** How long a disposer waits for the remote side; the lease ends it anyway. */
const DISPOSE_LIMIT_MS = 10_000;

const RSYNC_STATUS_SOCKET = 10;
const RSYNC_STATUSES_NO_CONNECTION = [10, 30, 35];
const SHELL_STATUS_NOT_FOUND = 127;

const NONCE_MODULE = 'nonce';

export interface DaemonRequest {
  /** `pgcloned_<id>_<attempt>`: how the directory on the source host begins. */
  readonly name: string;
  /** What is served, by names of letters, digits, `_` and `-`. The paths may hold anything. */
  readonly modules: readonly { readonly name: string; readonly path: string }[];
  /** Where we reach the source host. */
  readonly connectAddress: string;
  /** An address of the source host to listen on; null: the one that the SSH connection reached there. */
  readonly bindAddress: string | null;
  readonly ports: { readonly first: number; readonly last: number };
  /** Connections at a time, over all modules. */
  readonly connectionsMax: number;
  /** Without a sign of life from us for so long the source host ends everything, in milliseconds; in effect whole seconds. */
  readonly leaseMs: number;
  /** A directory of ours on this host for a file of a few bytes. */
  readonly directory: string;
  readonly signal: AbortSignal;
}

export interface RsyncDaemon extends AsyncDisposable {
  readonly address: string;
  readonly port: number;
  readonly user: string;
  /** Goes to `RSYNC_PASSWORD` of our children, nowhere else. */
  readonly password: string;
  /** Settles with the reason when the daemon has ended without being asked. */
  readonly lost: Promise<CloneError>;
  /**
   * Ends it, and settles once daemon, connections and directory are gone. Again: does nothing.
   *
   * @throws {CloneError} `SOURCE_LOST` if the source host did not confirm that; the lease ends it then.
   * @throws The signal's reason if it aborts first.
   */
  readonly stop: (signal: AbortSignal) => Promise<void>;
}

/**
 * Starts the daemon and proves that it can be used from here. Until then and if that fails nothing is left running.
 *
 * @throws {CloneError} `RSYNCD_FAILED` if no port of the range can be used, `TOOL_MISSING` if a host lacks rsync,
 *   `REMOTE_COMMAND_FAILED` if the wrapper does not come up, and what the runner throws.
 */
export async function startDaemon(
  runner: ProcessRunner,
  request: DaemonRequest,
): Promise<RsyncDaemon> {
  request.signal.throwIfAborted();
  refuseOddNames(request);
  const user = `pgcloned-${randomBytes(6).toString('hex')}`;
  const password = randomBytes(32).toString('base64url');
  const nonce = randomBytes(32).toString('hex');

  const wrapper = await startWrapper(runner, request, user);
  try {
    wrapper.begin(password, nonce);
    await withLimit(async (signal) => await unlessAborted(wrapper.ready, signal), {
      signal: request.signal,
      limitMs: WRAPPER_LIMIT_MS,
      expired: () =>
        new CloneError(
          'REMOTE_COMMAND_FAILED',
          `the command serve got no answer from ${runner.label}`,
          {
            facts: { host: runner.label, limitMs: WRAPPER_LIMIT_MS },
            hint: 'See whether the login shell of the SSH user starts quickly and without asking anything.',
          },
        ),
    });
    const port = await findPort(wrapper, request, { user, password, nonce });
    return {
      address: request.connectAddress,
      port,
      user,
      password,
      lost: wrapper.lost(port),
      stop: wrapper.stop,
      [Symbol.asyncDispose]: wrapper[Symbol.asyncDispose],
    };
  } catch (error) {
    await wrapper[Symbol.asyncDispose]();
    throw error;
  }
}

/** They become lines of a configuration and names of files on the source host. */
function refuseOddNames({ name, modules, bindAddress }: DaemonRequest): void {
  const odd =
    !/^pgcloned_\w+$/.test(name) ||
    (bindAddress !== null && !/^[\w.:%-]+$/.test(bindAddress)) ||
    modules.some(
      (module) => !/^[\w-]+$/.test(module.name) || /^(nonce|global)$/i.test(module.name),
    );
  if (odd) throw new Error('an rsync daemon was asked for with a name that it cannot have');
}

/** The shell on the source host that starts and ends rsync. */
interface Wrapper extends AsyncDisposable {
  readonly label: string;
  /** Hands over the secrets; from now on the lease runs and is renewed. */
  readonly begin: (password: string, nonce: string) => void;
  /** Rejects if it ends instead. */
  readonly ready: Promise<void>;
  /** Starts rsync on a port. Settles once that rsync has ended by itself. */
  readonly listen: (port: number) => Promise<RsyncEnd>;
  readonly lost: (port: number) => Promise<CloneError>;
  readonly stop: (signal: AbortSignal) => Promise<void>;
}

interface RsyncEnd {
  /** Null if the wrapper ended with it, or the connection to the wrapper. */
  readonly status: number | null;
  /** The last lines of its log, or of the wrapper's standard error. */
  readonly reason: string;
}

async function startWrapper(
  runner: ProcessRunner,
  request: DaemonRequest,
  user: string,
): Promise<Wrapper> {
  const ready = Promise.withResolvers<void>();
  const endings = new Map<number, PromiseWithResolvers<RsyncEnd>>();
  let directory = '';
  let gone = false;
  let stopping = false;
  const onLine = (line: string) => {
    const [prefix, event, argument = '', status, ...reason] = line.split(' ');
    if (prefix !== 'pgcloned') return;
    if (event === 'ready') {
      directory = argument;
      ready.resolve();
    } else if (event === 'ended') {
      endings.get(Number(argument))?.resolve({ status: Number(status), reason: reason.join(' ') });
    } else if (event === 'gone') gone = true;
  };

  // The wrapper outlives the signal of the clone, whose end it needs to be told.
  const channel = new AbortController();
  const command = remoteCommand('serve', await serveArguments(request, user));
  const remote = await runner.start(command, { signal: channel.signal, onLine });
  let heartbeat: NodeJS.Timeout | undefined;
  void remote.exited.then((exit) => {
    clearInterval(heartbeat);
    const reason = [describeExit(exit), remote.stderrTail()].join(': ');
    ready.reject(
      exit.status === null && exit.signal === null
        ? new CloneError('SOURCE_LOST', `the connection to ${runner.label} was lost`, {
            facts: { host: runner.label },
            hint: 'See whether its SSH server runs, and the network between.',
          })
        : new CloneError(
            'REMOTE_COMMAND_FAILED',
            `the rsync daemon could not be prepared on ${runner.label}`,
            {
              facts: { host: runner.label, reason },
              hint: 'The SSH user needs a POSIX login shell and a temporary directory with free space.',
            },
          ),
    );
    for (const ending of endings.values()) ending.resolve({ status: null, reason });
  });
  // Whoever awaits it gets the error; nobody does if the start is aborted before.
  ready.promise.catch(() => {});

  const stop = async (signal: AbortSignal) => {
    if (!stopping) {
      stopping = true;
      clearInterval(heartbeat);
      remote.writeLine('stop');
      remote.endInput();
    }
    await unlessAborted(remote.exited, signal);
    if (gone) return;
    throw new CloneError(
      'SOURCE_LOST',
      `${runner.label} did not confirm the end of the rsync daemon`,
      {
        facts: { host: runner.label, directory },
        hint: `It ends by itself within ${String(leaseSeconds(request) + 2)} seconds, unless the host was restarted meanwhile; then remove the directory.`,
      },
    );
  };

  return {
    label: runner.label,
    begin: (password, nonce) => {
      remote.writeLine(password);
      remote.writeLine(nonce);
      heartbeat = setInterval(() => {
        remote.writeLine('beat');
      }, request.leaseMs / HEARTBEATS_PER_LEASE);
    },
    ready: ready.promise,
    listen: async (port) => {
      const ended = Promise.withResolvers<RsyncEnd>();
      endings.set(port, ended);
      remote.writeLine(`port ${String(port)}`);
      return await ended.promise;
    },
    lost: async (port) => {
      const end = await endings.get(port)?.promise;
      // What was asked to end is not lost: then this never settles.
      if (end === undefined || stopping) return await new Promise(() => {});
      return lostDaemon(runner.label, port, end);
    },
    stop,
    [Symbol.asyncDispose]: async () => {
      try {
        await stop(AbortSignal.timeout(DISPOSE_LIMIT_MS));
      } catch {
        // A disposer never throws. Dropping the channel is the end of the wrapper's input; the lease does the rest.
        channel.abort(new Error('the rsync daemon was disposed of'));
      }
    },
  };
}

async function serveArguments(request: DaemonRequest, user: string): Promise<string[]> {
  const { bindAddress, connectAddress } = request;
  return [
    request.name,
    String(leaseSeconds(request)),
    user,
    String(request.connectionsMax),
    // The SSH connection shows our address there, but to another address of the source host we may come from another
    // one of ours.
    bindAddress === null ? '' : await ownAddressTowards(connectAddress),
    bindAddress ?? '',
    ...request.modules.flatMap(({ name, path }) => [name, path]),
  ];
}

const leaseSeconds = ({ leaseMs }: DaemonRequest) => Math.max(1, Math.ceil(leaseMs / 1000));

/** Which of our addresses packets to `address` carry. Nothing is sent. */
async function ownAddressTowards(address: string): Promise<string> {
  await using socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4');
  const connected = once(socket, 'connect');
  socket.connect(9, address);
  try {
    await connected;
  } catch {
    // There is no way there, as the first attempt to connect will say better.
    return '';
  }
  return socket.address().address;
}

interface Credentials {
  readonly user: string;
  readonly password: string;
  readonly nonce: string;
}

/** @returns The port that has served our nonce. */
async function findPort(
  wrapper: Wrapper,
  request: DaemonRequest,
  credentials: Credentials,
): Promise<number> {
  for (const port of randomPorts(request.ports)) {
    const ended = await provePort(port, wrapper.listen(port), request, credentials);
    if (ended === null) return port;
    if (ended.status === RSYNC_STATUS_SOCKET && !/cannot assign/i.test(ended.reason)) continue;
    if (ended.status === null) throw lostDaemon(wrapper.label, port, ended);
    throw notStarted(request, ended);
  }
  throw new CloneError('RSYNCD_FAILED', 'no port of the range is free on the source host', {
    facts: { firstPort: request.ports.first, lastPort: request.ports.last },
    hint: 'Give the source a wider range in rsyncd.ports, and open it in the firewalls.',
  });
}

function randomPorts({ first, last }: DaemonRequest['ports']): readonly number[] {
  const ports = Array.from({ length: last - first + 1 }, (_, index) => first + index);
  // Two engines on one source host rarely try the same one first.
  return ports
    .map((port) => ({ port, order: Math.random() }))
    .toSorted((a, b) => a.order - b.order)
    .slice(0, PORTS_TRIED_MAX)
    .map(({ port }) => port);
}

/** @returns Null once the nonce came from there, or how our rsync ended without it. */
async function provePort(
  port: number,
  ended: Promise<RsyncEnd>,
  request: DaemonRequest,
  credentials: Credentials,
): Promise<RsyncEnd | null> {
  request.signal.throwIfAborted();
  const attempt = new AbortController();
  using _ = addAbortListener(request.signal, () => {
    attempt.abort(request.signal.reason);
  });
  void ended.then(() => {
    attempt.abort(new Error('rsync has ended'));
  });
  try {
    await readNonceUntilServed(port, attempt.signal, request, credentials);
    return null;
  } catch (error) {
    if (request.signal.aborted || !attempt.signal.aborted) throw error;
    return await ended;
  }
}

async function readNonceUntilServed(
  port: number,
  signal: AbortSignal,
  request: DaemonRequest,
  credentials: Credentials,
): Promise<void> {
  const begunMs = performance.now();
  for (;;) {
    const outcome = await readNonce(port, signal, request, credentials);
    if (outcome.nonce === credentials.nonce) return;
    const { status, stderr } = outcome.exit;
    refuseFullTarget(stderr, { directory: request.directory, stderr });
    const waitedMs = performance.now() - begunMs;
    if (status !== null && RSYNC_STATUSES_NO_CONNECTION.includes(status)) {
      if (status !== RSYNC_STATUS_SOCKET || waitedMs > LISTEN_LIMIT_MS) {
        throw unreachable(request, port, stderr);
      }
    } else if (waitedMs > PORT_TAKEN_NEWS_MS) throw refused(request, port, stderr);
    await delay(LISTEN_POLL_MS, undefined, { signal });
  }
}

async function readNonce(
  port: number,
  signal: AbortSignal,
  { name, directory, connectAddress }: DaemonRequest,
  { user, password }: Credentials,
): Promise<{ readonly exit: Finished; readonly nonce: string | null }> {
  const file = join(directory, `${name}.nonce`);
  try {
    const exit = await runProcess(
      {
        file: 'rsync',
        args: [
          '--ignore-times',
          `--contimeout=${String(CONNECT_LIMIT_SECONDS)}`,
          `--timeout=${String(CONNECT_LIMIT_SECONDS)}`,
          rsyncUrl({ user, address: connectAddress, port, module: NONCE_MODULE, path: 'nonce' }),
          file,
        ],
        env: { LC_ALL: 'C', RSYNC_PASSWORD: password },
      },
      { signal, accept: 'any' },
    );
    const nonce = exit.status === 0 ? await readFile(file, 'utf8') : null;
    return { exit, nonce: nonce?.trim() ?? null };
  } finally {
    await rm(file, { force: true });
  }
}

function lostDaemon(label: string, port: number, { status, reason }: RsyncEnd): CloneError {
  const facts = { host: label, port, exitStatus: status, reason };
  return status === null
    ? new CloneError('SOURCE_LOST', `the rsync daemon on ${label} was lost`, {
        facts,
        hint: 'See whether the SSH connection broke, or froze for longer than the lease.',
      })
    : new CloneError('RSYNCD_FAILED', `the rsync daemon on ${label} ended by itself`, {
        facts,
        hint: 'See in the log of the source host who ended it, or whether memory ran out.',
      });
}

function notStarted({ bindAddress }: DaemonRequest, { status, reason }: RsyncEnd): CloneError {
  const facts = { exitStatus: status, reason };
  if (status === SHELL_STATUS_NOT_FOUND) {
    return new CloneError('TOOL_MISSING', 'rsync is not installed on the source host', {
      facts: { ...facts, program: 'rsync' },
      hint: 'Install rsync on the source host.',
    });
  }
  if (status === RSYNC_STATUS_SOCKET) {
    return new CloneError(
      'RSYNCD_FAILED',
      'the source host does not have the address to listen on',
      {
        facts: { ...facts, address: bindAddress },
        hint: 'Set rsyncd.address of the source to an address of that host, or leave it out.',
      },
    );
  }
  return new CloneError('RSYNCD_FAILED', 'rsync did not start on the source host', {
    facts,
    hint: 'See the reason; rsync must be able to run as a daemon of the SSH user.',
  });
}

function unreachable(request: DaemonRequest, port: number, reason: string): CloneError {
  const { connectAddress, ports } = request;
  return new CloneError(
    'RSYNCD_FAILED',
    `the rsync daemon cannot be reached on ${connectAddress}`,
    {
      facts: { address: connectAddress, port, reason: reason.trim() },
      hint: `Open TCP ports ${String(ports.first)} to ${String(ports.last)} of ${connectAddress} for this host in the firewalls, or set rsyncd.ports and rsyncd.address of the source to what is open.`,
    },
  );
}

function refused({ connectAddress }: DaemonRequest, port: number, reason: string): CloneError {
  return new CloneError('RSYNCD_FAILED', `the rsync daemon on ${connectAddress} refuses us`, {
    facts: { address: connectAddress, port, reason: reason.trim() },
    hint: `Make sure that ${connectAddress} is the host that SSH reaches, and that both see this host under the same address.`,
  });
}
