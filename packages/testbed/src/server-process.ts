/**
 * Servers in the foreground, as the parts' user, that die with the test that started them.
 *
 * The kernel signals the server when the thread that spawned it ends: tests run in processes (vitest `pool: 'forks'`).
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { asPartsUser, partsEnvironment } from './parts-user.ts';

const READY_TIMEOUT_MS = 60_000;
const KILL_AFTER_MS = 30_000;
const POLL_MS = 10;
const LOG_LINES_SHOWN = 20;

export interface ServerProcess {
  readonly pid: number;
  readonly exited: Promise<void>;
  readonly isAlive: () => boolean;
  /** Settles once it is gone; a server that ignores the signal is killed. */
  readonly stop: (signal: NodeJS.Signals) => Promise<void>;
}

/** @throws If the server ends or is not ready within a minute; the message has the last lines of its log. */
export async function startServerProcess(options: {
  readonly argv: readonly string[];
  /** Beside the environment of every part. */
  readonly env?: Readonly<Record<string, string>>;
  readonly logFile: string;
  readonly deathSignal: 'TERM' | 'QUIT';
  /** Turns the argv into one that runs on another host. */
  readonly on?: (argv: readonly string[]) => readonly string[];
  readonly isReady: (pid: number) => boolean | Promise<boolean>;
}): Promise<ServerProcess> {
  const { on = (argv) => argv } = options;
  const [file = '', ...args] = on(asPartsUser(options.argv, options.deathSignal));
  const log = await open(options.logFile, 'a', 0o600);
  const child = spawn(file, args, {
    cwd: '/',
    env: { ...partsEnvironment, ...options.env },
    // Of a session of its own, so that Ctrl-C at the terminal reaches us and not it.
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
  });
  const exited = once(child, 'exit').then(
    () => {},
    () => {},
  );
  try {
    await once(child, 'spawn');
  } finally {
    await log.close();
  }
  const server: ServerProcess = {
    pid: child.pid ?? 0,
    exited,
    isAlive: () => child.exitCode === null && child.signalCode === null,
    stop: async (signal) => {
      if (!server.isAlive()) return;
      child.kill(signal);
      const killTimer = setTimeout(() => child.kill('SIGKILL'), KILL_AFTER_MS);
      await exited;
      clearTimeout(killTimer);
    },
  };
  const deadline = Date.now() + READY_TIMEOUT_MS;
  while (!(await options.isReady(server.pid))) {
    if (!server.isAlive() || Date.now() > deadline) {
      await server.stop('SIGKILL');
      throw new Error(`${options.argv[0] ?? ''} did not start:\n${await tail(options.logFile)}`);
    }
    await delay(POLL_MS);
  }
  return server;
}

async function tail(logFile: string): Promise<string> {
  const lines = (await readFile(logFile, 'utf8')).trimEnd().split('\n');
  return lines.slice(-LOG_LINES_SHOWN).join('\n');
}
