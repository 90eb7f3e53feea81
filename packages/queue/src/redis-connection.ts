/**
 * Connections to Redis, and what their errors mean.
 *
 * Two kinds are made here. The API's answers at once: with Redis away a command fails instead of waiting, and becomes
 * `QUEUE_UNAVAILABLE`. The worker's is patient: a command waits until Redis is back, so that an outage costs nothing but
 * time. Both stop trying to reconnect once their owner closes; BullMQ and ioredis would otherwise wait for ever.
 *
 * An error of ioredis carries the command with its arguments, and the first command is AUTH with the password. So no such
 * error leaves this package: only its message does.
 */
import { isIP } from 'node:net';
import { CloneError } from '@pgcloned/contract';
import { Redis } from 'ioredis';

/** A server on the same network answers within milliseconds; after that the caller is told to come back. */
const COMMAND_TIMEOUT_MS = 5_000;

/** BullMQ's blocking reads end every few seconds, so that a silent socket is a dead one. */
const SOCKET_TIMEOUT_MS = 20_000;

const RECONNECT_MS_MAX = 2_000;

/** What ioredis and BullMQ both take; their own types contradict `exactOptionalPropertyTypes`. */
interface RedisAddress {
  readonly path?: string;
  readonly host?: string;
  readonly port?: number;
  readonly db?: number;
  readonly username?: string;
  readonly password?: string;
  readonly tls?: { readonly servername?: string };
}

export interface ConnectOptions {
  readonly redisUrl: string;
  /** Aborted when the owner begins to close. */
  readonly closing: AbortSignal;
  /** Hears of each outage once, and of every other error. */
  readonly onError: (error: Error) => void;
}

/** For readers: its commands fail at once while Redis is away. */
export function connectFailingFast(options: ConnectOptions): Redis {
  return connect(options, {
    enableOfflineQueue: false,
    maxRetriesPerRequest: 1,
    commandTimeout: COMMAND_TIMEOUT_MS,
  });
}

/** For subscriptions: connects with the first one and keeps it through outages. */
export function connectForMessages(options: ConnectOptions): Redis {
  return connect(options, {
    lazyConnect: true,
    maxRetriesPerRequest: null,
    commandTimeout: COMMAND_TIMEOUT_MS,
  });
}

/** For the worker: its commands wait until Redis is back. */
export function connectPatiently(options: ConnectOptions): Redis {
  return connect(options, { maxRetriesPerRequest: null });
}

function connect(
  { redisUrl, closing, onError }: ConnectOptions,
  kind: {
    readonly enableOfflineQueue?: boolean;
    readonly lazyConnect?: boolean;
    readonly maxRetriesPerRequest: number | null;
    readonly commandTimeout?: number;
  },
): Redis {
  const redis = new Redis({
    ...redisAddress(redisUrl),
    ...kind,
    socketTimeout: SOCKET_TIMEOUT_MS,
    retryStrategy: (attempt) =>
      closing.aborted ? null : Math.min(250 * attempt, RECONNECT_MS_MAX),
  });
  redis.on('error', onError);
  return redis;
}

/** Settles once the connection stands or its first attempt has failed. */
export async function firstOutcome(redis: Redis): Promise<void> {
  if (redis.status === 'ready') return;
  const { promise, resolve } = Promise.withResolvers<void>();
  redis.once('ready', resolve);
  redis.once('close', resolve);
  await promise;
  redis.off('ready', resolve);
  redis.off('close', resolve);
}

/** @throws {CloneError} `CONFIGURATION_INVALID`, which does not repeat the URL: it may hold a password. */
export function redisAddress(url: string): RedisAddress {
  if (url.startsWith('unix://')) return { path: url.slice('unix://'.length) };
  if (!URL.canParse(url)) throw unreadableUrl();
  const { hostname, port, username, password, protocol, pathname, search, hash } = new URL(url);
  const [, database] = /^\/?(\d{0,6})$/.exec(pathname) ?? [];
  // What would not be heeded is refused: another database than the one that was meant is somebody else's.
  if (hostname === '' || database === undefined || search !== '' || hash !== '') {
    throw unreadableUrl();
  }
  const host = hostname.replace(/^\[(.*)\]$/, '$1');
  return {
    host,
    port: Number(port === '' ? 6379 : port),
    db: Number(database),
    ...(username !== '' && { username: unescaped(username) }),
    ...(password !== '' && { password: unescaped(password) }),
    ...(protocol === 'rediss:' && { tls: isIP(host) === 0 ? { servername: host } : {} }),
  };
}

function unescaped(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    // Its error is of no use to anybody who may not see the text.
    throw unreadableUrl();
  }
}

function unreadableUrl(): CloneError {
  return new CloneError('CONFIGURATION_INVALID', 'the Redis URL cannot be read', {
    hint: 'Write redis://[user:password@]host[:port][/database], rediss://… or unix:///path, with %25 for a % in a password.',
  });
}

/** Where Redis is, for people: the URL without user and password. */
export function describeRedis(url: string): string {
  const { path, host, port } = redisAddress(url);
  return path ?? `${host ?? ''}:${String(port)}`;
}

/** Answers of a server that is there but cannot serve now. */
const NOT_SERVING = /^(?:LOADING|READONLY|OOM|MISCONF|BUSY|NOAUTH|WRONGPASS|NOPERM|MASTERDOWN)\b/;

/**
 * Awaits a command of ioredis.
 *
 * @throws {CloneError} `QUEUE_UNAVAILABLE` if Redis is away, refuses us or does not answer in time.
 */
export async function ask<T>(command: Promise<T>): Promise<T> {
  try {
    return await command;
  } catch (error) {
    throw translated(error);
  }
}

/** The same error without its command: see the head of this file. */
export function translated(error: unknown): Error {
  if (error instanceof CloneError) return error;
  const { name, message } = error instanceof Error ? error : new Error(String(error));
  if (name === 'ReplyError' && !NOT_SERVING.test(message)) return new Error(`redis: ${message}`);
  return queueUnavailable(message);
}

export function queueUnavailable(reason: string): CloneError {
  return new CloneError('QUEUE_UNAVAILABLE', 'redis does not answer', {
    facts: { reason },
    hint: 'Look whether the Redis server runs; try again when it does.',
  });
}

const LOST_CONNECTION =
  /connection is closed|max retries|stream isn't writeable|timed? ?out|connect E|read E|write E|getaddrinfo/i;

/** Passes errors on, but of one outage only the first: every connection repeats its own every second. */
export function reportOutagesOnce(
  redisUrl: string,
  onError: (error: Error) => void,
): { readonly onError: (error: Error) => void; readonly onReady: () => void } {
  let away = false;
  return {
    onError: (error) => {
      const isOutage =
        error instanceof CloneError
          ? error.code === 'QUEUE_UNAVAILABLE'
          : LOST_CONNECTION.test(error.message);
      if (!isOutage) onError(error.name === 'ReplyError' ? translated(error) : error);
      else if (!away) {
        away = true;
        onError(
          new CloneError('QUEUE_UNAVAILABLE', 'redis does not answer', {
            facts: { redis: describeRedis(redisUrl), reason: error.message },
            hint: 'Look whether the Redis server runs; we go on trying.',
          }),
        );
      }
    },
    onReady: () => {
      away = false;
    },
  };
}
