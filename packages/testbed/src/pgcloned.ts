/**
 * `pgcloned up` from this checkout, or API and worker each alone, as the parts' user, and requests to the API.
 *
 * The product is known here as a command and an HTTP API only: what is tested with it is what a user gets.
 */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort } from './free-port.ts';
import { writePartsFile } from './parts-user.ts';
import { type ServerProcess, startServerProcess } from './server-process.ts';

/** The program that `npx pgcloned` runs. */
export const PGCLONED = fileURLToPath(
  new URL('../../../apps/cli/bin/pgcloned.js', import.meta.url),
);

/** A command that stays. */
type PgclonedPart = 'up' | 'api' | 'worker';

export interface PgclonedOptions {
  /** What runs, each as a process of its own, in the order in which they start. Default: `up` alone. */
  readonly parts?: readonly PgclonedPart[];
  readonly env?: Readonly<Record<string, string>>;
  /** Turns the argv of the worker into one that runs on another host, which shares the files of this one. */
  readonly workerOn?: (argv: readonly string[]) => readonly string[];
}

export interface Pgcloned extends AsyncDisposable {
  readonly url: string;
  /** Of the role admin. */
  readonly token: string;
  readonly tokenFile: string;
  readonly configFile: string;
  readonly stateDirectory: string;
  /** Of all parts. */
  readonly logFile: string;
  /** Of the only part, or of the first in `parts`; 0 while it does not run. */
  readonly pid: number;
  /** `body` is sent as JSON; an answer that is not JSON is text. */
  request(
    method: string,
    path: string,
    body?: unknown,
    headers?: Readonly<Record<string, string>>,
  ): Promise<Answer>;
  /** SIGTERM (default) lets it tidy up, SIGKILL does not, SIGCONT only waits for its end. Without `part` all of them, in reverse order. */
  stop(signal?: 'SIGTERM' | 'SIGKILL' | 'SIGCONT', part?: PgclonedPart): Promise<void>;
  /** Starts what does not run, with the same configuration and state. */
  start(): Promise<void>;
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: the test says what it expects in it
  readonly body: any;
}

/**
 * @param directory Where its configuration, state and log go; the caller's to remove.
 * @param configuration The content of pgcloned.yaml. Address, state directory and host name have defaults here.
 */
export async function startPgcloned(
  directory: string,
  configuration: Readonly<Record<string, unknown>>,
  { parts = ['up'], env = {}, workerOn }: PgclonedOptions = {},
): Promise<Pgcloned> {
  const configFile = join(directory, 'pgcloned.yaml');
  const stateDirectory = join(directory, 'state');
  const logFile = join(directory, 'pgcloned.log');
  const listen = `127.0.0.1:${String(await freePort())}`;
  const url = `http://${listen}`;
  // JSON is YAML.
  const content = { host: 'testbed', stateDirectory, api: { listen }, ...configuration };
  await writePartsFile(configFile, JSON.stringify(content, null, 2));
  const tokenFile = join(stateDirectory, 'token');
  const servers = new Map<PgclonedPart, ServerProcess>();
  let token = '';

  const startPart = async (part: PgclonedPart): Promise<ServerProcess> => {
    const saidBefore = existsSync(logFile) ? statSync(logFile).size : 0;
    return await startServerProcess({
      argv: [process.execPath, PGCLONED, part, '--config', configFile],
      // The home of the parts' user may hold keys and passwords that no test is about.
      env: { HOME: directory, ...env },
      logFile,
      deathSignal: 'TERM',
      ...(part === 'worker' && workerOn !== undefined && { on: workerOn }),
      isReady: () => readFileSync(logFile).subarray(saidBefore).includes('pgcloned is ready'),
    });
  };

  const pgcloned: Pgcloned = {
    url,
    tokenFile,
    configFile,
    stateDirectory,
    logFile,
    get token() {
      return token;
    },
    get pid() {
      return servers.get(parts[0] ?? 'up')?.pid ?? 0;
    },
    start: async () => {
      for (const part of parts) {
        if (!servers.has(part)) servers.set(part, await startPart(part));
      }
      token = (await readFile(tokenFile, 'utf8')).trim();
    },
    stop: async (signal = 'SIGTERM', only) => {
      for (const part of [...servers.keys()].reverse()) {
        if (only !== undefined && part !== only) continue;
        await servers.get(part)?.stop(signal);
        servers.delete(part);
      }
    },
    request: async (method, path, body, headers = {}) => {
      const response = await fetch(`${url}${path}`, {
        method,
        headers: {
          authorization: `Bearer ${token}`,
          ...(body !== undefined && { 'content-type': 'application/json' }),
          ...headers,
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
      const text = await response.text();
      const isJson = response.headers.get('content-type')?.includes('json') === true;
      return {
        status: response.status,
        headers: response.headers,
        body: isJson ? JSON.parse(text) : text,
      };
    },
    [Symbol.asyncDispose]: async () => {
      await pgcloned.stop();
    },
  };
  try {
    await pgcloned.start();
    return pgcloned;
  } catch (error) {
    await pgcloned.stop();
    throw error;
  }
}
