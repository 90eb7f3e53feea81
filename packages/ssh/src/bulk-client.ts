/**
 * Connections of the OpenSSH client, for bulk data: each encrypts in a process, and so on a core, of its own.
 *
 * They lead where a connection of ours (`connect-ssh.ts`) has led, and nowhere else: to the same address, to its host key
 * alone, by the key that let us in. No ssh_config has a say. What OpenSSH refuses of what ssh2 takes (a key that others
 * may read, a key of PuTTY) is an error that says so.
 *
 * A connection is a master (`ssh -N -M`) in the foreground, which ends with us as any child does. Programs reach it by
 * `remoteShell`: without another handshake, and without another process between, since it is given their descriptors.
 * When it has ended they end, too; they never connect by themselves.
 *
 * What all of them need lies in one directory, and is called by names relative to it: the path of a socket has 108 bytes
 * at the most, and few of ssh's options take every path.
 */
import { addAbortListener } from 'node:events';
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { type RunningProcess, startProcess } from '@pgcloned/process';
import type { SshTerms } from './connect-ssh.ts';
import { typeOf } from './known-hosts.ts';
import { factsOf } from './ssh-target.ts';

const CONNECT_TIMEOUT_MS = 20_000;

/** It has nothing to finish: whoever used it has ended. */
const KILL_AFTER_MS = 1_000;

/** How many questions of the keepalive may stay without an answer. */
const KEEPALIVE_COUNT_MAX = 3;

/** Of sshd's default the first ten that have not yet proved who they are may wait (MaxStartups), and others come, too. */
const HANDSHAKES_MAX = 4;

/** The name of the host in its known_hosts, whatever it is called elsewhere and wherever the connection passes through. */
const ALIAS = 'source';

/** OpenSSH's own list with those in front that processors have instructions for: twice as fast as its first one. */
const CIPHERS = [
  ...['aes128-gcm@openssh.com', 'aes256-gcm@openssh.com', 'chacha20-poly1305@openssh.com'],
  ...['aes128-ctr', 'aes192-ctr', 'aes256-ctr'],
];

const READY = 'ready';

export interface BulkConnection extends AsyncDisposable {
  /** Runs a command on the host, as `rsync --rsh` takes it; any host name may follow it. Works in `directory` alone. */
  readonly remoteShell: string;
  readonly directory: string;
  readonly hasEnded: () => boolean;
}

export interface BulkClient extends AsyncDisposable {
  /**
   * Connects and authenticates. Of many calls at once a few go on at a time.
   *
   * @param options.through Where to connect in place of the host: what forwards to it.
   * @throws {CloneError} `SSH_UNREACHABLE`, `SSH_HOST_KEY_MISMATCH`, `SSH_AUTHENTICATION_FAILED`, `TOOL_MISSING`.
   */
  readonly connect: (options: {
    readonly through: { readonly address: string; readonly port: number };
    readonly signal: AbortSignal;
  }) => Promise<BulkConnection>;
}

/**
 * @param options.parent A directory of ours; a directory of its own is made in it, and removed with the client.
 * @param options.silenceMs No answer for so long ends a connection, in milliseconds.
 */
export async function openBulkClient(
  terms: SshTerms,
  options: { readonly parent: string; readonly silenceMs: number },
): Promise<BulkClient> {
  const directory = await mkdtemp(join(options.parent, 'pgcloned-ssh-'));
  const { hostKey, privateKeyFile } = terms;
  const dispose = async () => {
    await rm(directory, { recursive: true, force: true });
  };
  try {
    await writeFile(
      join(directory, 'known_hosts'),
      `${ALIAS} ${typeOf(hostKey)} ${hostKey.toString('base64')}\n`,
    );
    if (privateKeyFile !== null) await symlink(resolve(privateKeyFile), join(directory, 'key'));
  } catch (error) {
    await dispose();
    throw error;
  }
  const turns = Array.from({ length: HANDSHAKES_MAX }, () => Promise.resolve());
  let connections = 0;
  return {
    connect: async ({ through, signal }) => {
      connections += 1;
      const name = `connection-${String(connections)}`;
      const turn = connections % HANDSHAKES_MAX;
      const connecting = (turns[turn] ?? Promise.resolve()).then(
        async () => await startMaster(terms, { ...options, name, directory, through, signal }),
      );
      turns[turn] = connecting.then(
        () => {},
        () => {},
      );
      const master = await connecting;
      let hasEnded = false;
      void master.exited.then(() => {
        hasEnded = true;
      });
      return {
        // Without the master it would connect by itself, were it not for the proxy that leads nowhere.
        remoteShell: `ssh -F none -S ${name} -o BatchMode=yes -o LogLevel=ERROR -o ProxyCommand=false`,
        directory,
        hasEnded: () => hasEnded,
        [Symbol.asyncDispose]: async () => {
          await master.stop();
        },
      };
    },
    [Symbol.asyncDispose]: dispose,
  };
}

interface MasterOptions {
  readonly name: string;
  readonly directory: string;
  readonly silenceMs: number;
  readonly through: { readonly address: string; readonly port: number };
  readonly signal: AbortSignal;
}

async function startMaster(terms: SshTerms, options: MasterOptions): Promise<RunningProcess> {
  const { directory, signal } = options;
  signal.throwIfAborted();
  const ready = Promise.withResolvers<true>();
  const master = await startProcess(
    {
      file: 'ssh',
      args: argumentsFor(terms, options),
      cwd: directory,
      env: {
        LC_ALL: 'C',
        ...(terms.agentSocket !== null && { SSH_AUTH_SOCK: resolve(terms.agentSocket) }),
      },
    },
    {
      killAfterMs: KILL_AFTER_MS,
      onLine: (line) => {
        if (line === READY) ready.resolve(true);
      },
    },
  ).catch((error: unknown) => {
    throw explainMissing(error);
  });
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    void master.stop();
  }, CONNECT_TIMEOUT_MS);
  using _ = addAbortListener(signal, () => void master.stop());
  const isReady = await Promise.race([ready.promise, master.exited.then(() => false)]);
  clearTimeout(timer);
  if (isReady && !signal.aborted) return master;
  await master.stop();
  signal.throwIfAborted();
  throw explain(terms, isLate ? 'no answer in time' : master.stderrTail());
}

function argumentsFor(terms: SshTerms, { name, silenceMs, through }: MasterOptions): string[] {
  const { user, privateKeyFile } = terms;
  const keepaliveSeconds = Math.max(1, Math.floor(silenceMs / 1000 / KEEPALIVE_COUNT_MAX));
  const settings = {
    BatchMode: 'yes',
    LogLevel: 'ERROR',
    StrictHostKeyChecking: 'yes',
    HostKeyAlias: ALIAS,
    UserKnownHostsFile: 'known_hosts',
    GlobalKnownHostsFile: '/dev/null',
    CheckHostIP: 'no',
    UpdateHostKeys: 'no',
    PreferredAuthentications: 'publickey',
    ...(privateKeyFile === null
      ? { IdentityFile: 'none' }
      : { IdentityFile: 'key', IdentityAgent: 'none' }),
    ConnectTimeout: String(CONNECT_TIMEOUT_MS / 1000),
    ServerAliveInterval: String(keepaliveSeconds),
    ServerAliveCountMax: String(KEEPALIVE_COUNT_MAX),
    Ciphers: CIPHERS.join(','),
    // By default the packets say that they may wait for all others.
    IPQoS: 'none',
    // Said once the socket is there.
    PermitLocalCommand: 'yes',
    LocalCommand: `echo ${READY}`,
  };
  return [
    ...['-F', 'none', '-N', '-M', '-S', name],
    ...Object.entries(settings).flatMap(([setting, value]) => ['-o', `${setting}=${value}`]),
    ...['-l', user, '-p', String(through.port), '--', through.address],
  ];
}

function explainMissing(error: unknown): unknown {
  if (!(error instanceof CloneError) || error.code !== 'TOOL_MISSING') return error;
  return new CloneError('TOOL_MISSING', error.message, {
    facts: error.facts,
    hint: 'Install the OpenSSH client on this host (apt-get install openssh-client), or use transfer.transport: rsyncd.',
    cause: error,
  });
}

function explain(terms: SshTerms, stderr: string): CloneError {
  const { address, port, user, privateKeyFile } = terms;
  // What it knows as `key` has a name of its own for everybody else.
  const reason = stderr.trim().replaceAll(/"key"|'key'/g, JSON.stringify(privateKeyFile));
  const facts = { ...factsOf({ host: address, port, user }), privateKeyFile, reason };
  const [last = ''] = reason.split('\n').slice(-1);
  if (/^Load key|UNPROTECTED PRIVATE KEY/m.test(reason)) {
    return new CloneError('SSH_AUTHENTICATION_FAILED', 'OpenSSH cannot use the SSH key', {
      facts,
      hint: `Make it readable for its owner alone (chmod 600 FILE), and see that ssh-keygen -y -f FILE prints its public key; or use transfer.transport: rsyncd.`,
    });
  }
  if (/Permission denied|Too many authentication failures/.test(reason)) {
    return new CloneError(
      'SSH_AUTHENTICATION_FAILED',
      `${address} lets our SSH client in as ${user}, but not OpenSSH's`,
      {
        facts,
        hint: 'See the reason, and the log of sshd; or use transfer.transport: rsyncd.',
      },
    );
  }
  if (/host key verification failed/i.test(reason)) {
    return new CloneError('SSH_HOST_KEY_MISMATCH', `${address} has come with another host key`, {
      facts,
      hint: 'The connection before had a known one. See whether several hosts answer at this address, and whether somebody is in between.',
    });
  }
  return new CloneError('SSH_UNREACHABLE', `OpenSSH cannot connect to ${address}: ${last}`, {
    facts,
    hint: 'The connection before could. See whether sshd lets in as many at a time (MaxStartups in sshd_config, firewalls); fewer workers need fewer connections.',
  });
}
