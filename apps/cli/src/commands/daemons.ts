/**
 * `pgcloned up`, `api` and `worker`: the parts that stay.
 *
 * Each is a stack of things that end in reverse order: the API falls silent before the worker stops, and Redis outlives
 * both. The first signal ends them cleanly, with exit status 0. Parts are imported where they are started: an API alone
 * needs no engine, and a worker alone no HTTP.
 */
import { once } from 'node:events';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import type { RunningApi } from '@pgcloned/api';
import { CloneError, type Token } from '@pgcloned/contract';
import { embeddedRedisUrl, openCloneStore, startEmbeddedRedis } from '@pgcloned/queue';
import type { Logger } from 'pino';
import { readLogLevel, readSettings, type Settings } from '../config.ts';
import type { GlobalOptions, Invocation } from '../invocation.ts';
import { openLog } from '../log.ts';
import { print, printJson } from '../output.ts';
import {
  adminToken,
  lockStateDirectory,
  makeStateDirectory,
  tokenFileOf,
} from '../state-directory.ts';

export async function up(invocation: Invocation, options: GlobalOptions): Promise<void> {
  await serve(invocation, options, async (daemon) => {
    const { settings, parts, log, fail } = daemon;
    parts.use(await lockStateDirectory(settings.stateDirectory, daemon.signal));
    const redisUrl = await redisOf(settings, async (directory) => {
      const redis = parts.use(await startEmbeddedRedis({ directory, onError: reportTo(log) }));
      void redis.exited.then(fail);
      return redis.url;
    });
    await addWorker(daemon, redisUrl);
    const { url } = await addApi(daemon, redisUrl);
    return { url, host: settings.host, ...whereTheTokenIs(settings) };
  });
}

export async function api(invocation: Invocation, options: GlobalOptions): Promise<void> {
  await serve(invocation, options, async (daemon) => {
    const redisUrl = await redisOf(daemon.settings, attachToEmbedded);
    const { url } = await addApi(daemon, redisUrl);
    return { url, ...whereTheTokenIs(daemon.settings) };
  });
}

export async function worker(invocation: Invocation, options: GlobalOptions): Promise<void> {
  await serve(invocation, options, async (daemon) => {
    await addWorker(daemon, await redisOf(daemon.settings, attachToEmbedded));
    return { host: daemon.settings.host };
  });
}

interface Daemon {
  readonly settings: Settings;
  readonly log: Logger;
  /** What has been started, to be ended in reverse order. */
  readonly parts: AsyncDisposableStack;
  readonly signal: AbortSignal;
  readonly sshAgentSocket: string | null;
  /** Ends everything because a part could not be kept running. */
  readonly fail: (error: CloneError) => void;
}

/** What the line says that is printed when everything is ready. */
interface Ready {
  readonly url?: string;
  readonly host?: string;
  readonly tokenFile?: string;
}

async function serve(
  { environment, signal }: Invocation,
  options: GlobalOptions,
  start: (daemon: Daemon) => Promise<Ready>,
): Promise<void> {
  const settings = await readSettings(environment, options.config);
  const log = openLog(readLogLevel(environment, options, 'info'));
  await makeStateDirectory(settings.stateDirectory);
  const failure = Promise.withResolvers<never>();
  // Looked at only once everything has started.
  failure.promise.catch(() => {});
  await using parts = new AsyncDisposableStack();
  try {
    const ready = await start({
      settings,
      log,
      parts,
      signal,
      sshAgentSocket: environment.SSH_AUTH_SOCK || null,
      fail: failure.reject,
    });
    if (options.json === true) printJson({ event: 'ready', ...ready, pid: process.pid });
    else print(describeReady(ready));
    if (!signal.aborted) await Promise.race([once(signal, 'abort'), failure.promise]);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  log.info('stopping');
}

function describeReady({ url, host, tokenFile }: Ready): string {
  return [
    'pgcloned is ready',
    ...(url === undefined ? [] : [`API ${url}`]),
    ...(host === undefined ? [] : [`host ${host}`]),
    ...(tokenFile === undefined ? [] : [`token in ${tokenFile}`]),
  ].join(', ');
}

/** @param embedded Called with the directory of the embedded Redis if that is the configured one. */
async function redisOf(
  { redis, stateDirectory }: Settings,
  embedded: (directory: string) => Promise<string>,
): Promise<string> {
  return redis === 'embedded' ? await embedded(join(stateDirectory, 'redis')) : redis;
}

/** @throws {CloneError} `QUEUE_UNAVAILABLE` if no `pgcloned up` keeps a Redis there. */
async function attachToEmbedded(directory: string): Promise<string> {
  const url = embeddedRedisUrl(directory);
  const socket = createConnection(url.slice('unix://'.length));
  try {
    await once(socket, 'connect');
  } catch (cause) {
    throw new CloneError('QUEUE_UNAVAILABLE', `no embedded Redis runs in ${directory}`, {
      hint: 'Start `pgcloned up`, which runs one, or set redis (PGCLONED_REDIS) to the URL of a Redis.',
      cause,
    });
  } finally {
    socket.destroy();
  }
  return url;
}

async function addApi({ settings, log, parts }: Daemon, redisUrl: string): Promise<RunningApi> {
  const { startApi } = await import('@pgcloned/api');
  const store = parts.use(await openCloneStore({ redisUrl, onError: reportTo(log) }));
  return parts.use(
    await startApi({ ...settings.api, tokens: await tokensOf(settings), store, logger: log }),
  );
}

async function tokensOf({ api: { tokens }, stateDirectory }: Settings): Promise<readonly Token[]> {
  return tokens.length > 0 ? tokens : [await adminToken(stateDirectory)];
}

function whereTheTokenIs({ api: { tokens }, stateDirectory }: Settings): Pick<Ready, 'tokenFile'> {
  return tokens.length > 0 ? {} : { tokenFile: tokenFileOf(stateDirectory) };
}

async function addWorker(
  { settings, log, parts, signal, sshAgentSocket }: Daemon,
  redisUrl: string,
): Promise<void> {
  if (settings.worker.dataRoots.length === 0) {
    log.warn('worker.dataRoots is empty: every clone will be refused until it names a directory');
  }
  const { startWorker } = await import('@pgcloned/worker');
  parts.use(await startWorker({ ...settings, sshAgentSocket, redisUrl, logger: log, signal }));
}

function reportTo(log: Logger): (error: Error) => void {
  return (error) => {
    log.warn({ err: error }, 'Redis');
  };
}
