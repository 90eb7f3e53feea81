/**
 * Who the parts run as.
 *
 * PostgreSQL refuses to run as root, and so does our worker. When the tests run as root, their parts drop to the user
 * `postgres`; otherwise they run as whoever runs the tests.
 */
import { readFileSync } from 'node:fs';
import { chown, writeFile } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { type Finished, runProcess } from '@pgcloned/process';
import { configuredPostgresBin } from './installed-postgres.ts';

/** No tool of a test runs for minutes; one that does hangs. */
const TOOL_TIMEOUT_MS = 120_000;

export interface PartsUser {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
}

export const runsAsRoot = process.getuid?.() === 0;

export const partsUser: PartsUser = runsAsRoot ? userNamed('postgres') : ourselves();

/** The environment of every part: nothing of the developer's own (`PG*`, locale, agent) leaks into a test. */
export const partsEnvironment: Readonly<Record<string, string>> = {
  PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin',
  HOME: partsUser.home,
  USER: partsUser.name,
  LC_ALL: 'C.UTF-8',
  ...(configuredPostgresBin !== null && { PGCLONED_WORKER_POSTGRES_BIN: configuredPostgresBin }),
};

/**
 * @param deathSignal What the kernel sends the program when the process that started it dies.
 * @returns The argv that runs `argv` as the parts' user.
 */
export function asPartsUser(argv: readonly string[], deathSignal?: 'TERM' | 'QUIT'): string[] {
  const options = [
    ...(runsAsRoot
      ? ['--reuid', String(partsUser.uid), '--regid', String(partsUser.gid), '--init-groups']
      : []),
    ...(deathSignal === undefined ? [] : ['--pdeathsig', deathSignal]),
  ];
  return options.length === 0 ? [...argv] : ['setpriv', ...options, '--', ...argv];
}

/** Runs a tool as the parts' user to its end. @throws {CloneError} `PROCESS_FAILED` unless it exits with an accepted status. */
export async function runAsPartsUser(
  argv: readonly string[],
  options: {
    readonly env?: Readonly<Record<string, string>>;
    readonly input?: string;
    readonly accept?: readonly number[] | 'any';
  } = {},
): Promise<Finished> {
  const [file = '', ...args] = asPartsUser(argv);
  return await runProcess(
    {
      file,
      args,
      cwd: '/',
      env: { ...partsEnvironment, ...options.env },
      ...(options.input !== undefined && { input: options.input }),
    },
    { signal: AbortSignal.timeout(TOOL_TIMEOUT_MS), accept: options.accept ?? [0] },
  );
}

/** Writes a file that belongs to the parts' user and that nobody else may read. */
export async function writePartsFile(path: string, text: string): Promise<void> {
  await writeFile(path, text, { mode: 0o600 });
  if (runsAsRoot) await chown(path, partsUser.uid, partsUser.gid);
}

function userNamed(name: string): PartsUser {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith(`${name}:`));
  const [, , uid, gid, , home] = line?.split(':') ?? [];
  if (uid === undefined || gid === undefined || home === undefined) {
    throw new Error(`there is no user ${name}; the package postgresql-common makes it`);
  }
  return { name, uid: Number(uid), gid: Number(gid), home };
}

function ourselves(): PartsUser {
  const { username, uid, gid, homedir } = userInfo();
  return { name: username, uid, gid, home: homedir };
}
