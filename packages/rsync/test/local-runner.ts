/**
 * A "remote" host that is this machine: commands run in a session of their own as the parts' user, as under sshd, with an
 * SSH_CONNECTION of loopback and a temporary directory that nobody else uses.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { addAbortListener, once } from 'node:events';
import { symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Exit, ProcessRunner } from '@pgcloned/process';
import { asPartsUser, makeDirectory, partsEnvironment, type SshServer } from '@pgcloned/testbed';

export interface LocalRunner extends ProcessRunner {
  /** The first directory of its PATH. */
  readonly bin: string;
  /** What the last `start` started: the wrapper's main shell. */
  readonly pid: () => number;
}

export interface LocalRunnerOptions {
  /** A directory of the test. */
  readonly directory: string;
  /** What `sh` is on that host. */
  readonly shell?: 'dash' | 'bash';
  readonly env?: Readonly<Record<string, string>>;
  /** Whether commands run as whoever runs the tests. */
  readonly asOurselves?: boolean;
  /** A real sshd in between; `directory` must be its own then. */
  readonly sshd?: SshServer;
  /** What the login shell says before it does anything. */
  readonly greeting?: string;
}

/** The temporary directory of that host, below the test's. */
export const remoteTemporary = (directory: string) => join(directory, 'remote-tmp');

export async function localRunner(options: LocalRunnerOptions): Promise<LocalRunner> {
  const { directory, shell = 'dash' } = options;
  const bin = join(directory, `bin-${randomUUID()}`);
  await makeDirectory(bin);
  await symlink(`/usr/bin/${shell}`, join(bin, 'sh'));
  await makeDirectory(remoteTemporary(directory));
  let last: ChildProcessWithoutNullStreams | undefined;
  const open = (command: string) => {
    const [file = '', ...args] = argv(command, options);
    last = spawn(file, args, {
      cwd: '/',
      detached: true,
      env: {
        ...partsEnvironment,
        PATH: `${bin}:${partsEnvironment.PATH ?? ''}`,
        TMPDIR: remoteTemporary(directory),
        SSH_CONNECTION: '127.0.0.1 50000 127.0.0.1 22',
        ...options.env,
      },
    });
    last.stdin.on('error', () => {});
    return last;
  };
  return {
    label: 'parts@localhost',
    bin,
    pid: () => last?.pid ?? 0,
    run: async (command, { signal, input, onOutput }) => {
      signal.throwIfAborted();
      const child = open(command);
      using _ = addAbortListener(signal, () => child.kill('SIGKILL'));
      child.stdin.end(input);
      const output: Buffer[] = [];
      const errors: Buffer[] = [];
      child.stdout.on('data', (chunk: Buffer) => {
        output.push(chunk);
        onOutput?.();
      });
      child.stderr.on('data', (chunk: Buffer) => errors.push(chunk));
      const exit = await exitOf(child);
      signal.throwIfAborted();
      return { ...exit, stdout: Buffer.concat(output), stderr: Buffer.concat(errors).toString() };
    },
    start: async (command, { signal, onLine }) => {
      const child = open(command);
      let stderr = '';
      createInterface({ input: child.stdout }).on('line', onLine);
      child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
      signal.addEventListener('abort', () => child.stdin.destroy(), { once: true });
      await once(child, 'spawn');
      return {
        writeLine: (line) => child.stdin.write(`${line}\n`),
        endInput: () => child.stdin.end(),
        exited: exitOf(child),
        stderrTail: () => stderr,
      };
    },
  };
}

function argv(command: string, { sshd, asOurselves, greeting }: LocalRunnerOptions): string[] {
  if (sshd !== undefined) {
    return [
      ...['ssh', '-F', 'none', '-T', '-p', String(sshd.port), '-i', sshd.privateKeyFile],
      ...['-o', `UserKnownHostsFile=${sshd.knownHostsFile}`, '-o', 'IdentitiesOnly=yes'],
      ...[`${sshd.user}@${sshd.host}`, command],
    ];
  }
  const login = ['sh', '-c', `${greeting ?? ''}\n${command}`];
  return asOurselves === true ? login : asPartsUser(login);
}

async function exitOf(child: ChildProcessWithoutNullStreams): Promise<Exit> {
  const [status, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  return { status, signal };
}
