/** Runs the real command as a child, as the user of the parts, with an environment of its own. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { asPartsUser, partsEnvironment, runAsPartsUser, scratchDirectory } from '@pgcloned/testbed';

export const COMMAND = fileURLToPath(new URL('../bin/pgcloned.js', import.meta.url));

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Workplace extends AsyncDisposable {
  readonly path: string;
  /** Home and state are below `path`; what lies in the machine's /etc does not matter. */
  readonly environment: Readonly<Record<string, string>>;
  /** Writes a file and returns its path. */
  readonly file: (name: string, text: string) => Promise<string>;
  readonly pgcloned: (
    args: readonly string[],
    options?: { readonly env?: Readonly<Record<string, string>>; readonly input?: string },
  ) => Promise<Outcome>;
}

export async function makeWorkplace(): Promise<Workplace> {
  const scratch = await scratchDirectory();
  const environment = { HOME: scratch.path, PGCLONED_CONFIG: join(scratch.path, 'empty.yaml') };
  const file = async (name: string, text: string): Promise<string> => {
    const path = join(scratch.path, name);
    await writeFile(path, text);
    return path;
  };
  await file('empty.yaml', '');
  return {
    path: scratch.path,
    environment,
    file,
    pgcloned: async (args, { env = {}, input } = {}) => {
      const { status, stdout, stderr } = await runAsPartsUser(
        [process.execPath, COMMAND, ...args],
        {
          env: { ...environment, ...env },
          accept: 'any',
          ...(input !== undefined && { input }),
        },
      );
      return { status, stdout: stdout.toString(), stderr };
    },
    [Symbol.asyncDispose]: async () => {
      await scratch[Symbol.asyncDispose]();
    },
  };
}

export interface RunningCommand extends AsyncDisposable {
  readonly child: ChildProcessByStdio<null, Readable, Readable>;
  /** Settles with the exit status once it has ended and its output was read. */
  readonly ended: Promise<Outcome>;
}

/** Starts the command and leaves it running, for whoever wants to send it signals. */
export function startPgcloned(
  workplace: Workplace,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  /** Where its standard error goes instead of into the outcome. */
  { log }: { readonly log?: string } = {},
): RunningCommand {
  const argv = [process.execPath, COMMAND, ...args];
  const [file = '', ...rest] = asPartsUser(
    log === undefined ? argv : ['sh', '-c', `exec "$@" 2>'${log}'`, 'sh', ...argv],
    'TERM',
  );
  const child = spawn(file, rest, {
    cwd: '/',
    env: { ...partsEnvironment, ...workplace.environment, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const ended = once(child, 'close').then(([status]) => ({
    status: status as number | null,
    stdout,
    stderr,
  }));
  return {
    child,
    ended,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGTERM');
      await ended;
    },
  };
}

/** Settles when `stream` has said something that matches. */
export async function said(stream: Readable, pattern: RegExp): Promise<string> {
  let text = '';
  for (;;) {
    const [more] = (await once(stream, 'data')) as [string];
    text += more;
    if (pattern.test(text)) return text;
  }
}
