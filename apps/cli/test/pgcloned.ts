/** Runs the real command as a child, as the user of the parts, with an environment of its own. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runAsPartsUser, scratchDirectory } from '@pgcloned/testbed';

export const COMMAND = fileURLToPath(new URL('../bin/pgcloned.js', import.meta.url));

export interface Outcome {
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
