/**
 * One run of `pg_receivewal`: how it is started, whether it streams, and why it ended.
 */
import { readdir, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CloneError } from '@pgcloned/contract';
import { describeExit, type Exit, type RunningProcess, startProcess } from '@pgcloned/process';
import {
  type ConnectionSettings,
  idleSessionTimeout,
  libpqEnvironment,
} from './connection-settings.ts';
import { formatLsn, parseLsn } from './lsn.ts';
import { probeReplication } from './replication-probe.ts';
import type { Session } from './session.ts';
import { segmentName, segmentStart, segmentStartOfName } from './wal-segment.ts';

export interface WalReceiverOptions {
  readonly binDirectory: string;
  readonly settings: ConnectionSettings;
  /** Unique on the source: the WAL sender is found by it. */
  readonly applicationName: string;
  /** Exists and is empty: forgotten files would change where the stream begins (R4.1). */
  readonly directory: string;
  /** The stream begins with the segment that holds `lsn`. */
  readonly seed: { readonly timeline: number; readonly lsn: string; readonly segmentBytes: number };
  /** Sees `pg_stat_replication`; stays the caller's, and must live as long as the receiver. */
  readonly session: Session;
  readonly inheritedFds: readonly number[];
  /** How long the stream may stand still although the source has more, in milliseconds. */
  readonly stallMs: number;
  readonly signal: AbortSignal;
}

const POLL_MS = 20;
/** Connecting has ten seconds by PGCONNECT_TIMEOUT; a source that is overloaded may take as long to begin. */
const START_LIMIT_MS = 30_000;
/** An fsync of a disk that has gigabytes to write takes that long, and cannot be hurried. */
const KILL_AFTER_MS = 60_000;
const PROBES_MAX = 10;
const PROBE_PAUSE_MS = 100;
/** Our half of R3.2: what we have said and nobody confirms ends the connection, as on the other side. */
const CONNECTION_OPTIONS =
  'keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=25000';

/** The server's half of R3.2. */
const serverOptions = (settings: ConnectionSettings): string =>
  [
    'statement_timeout=0',
    `idle_session_timeout=${idleSessionTimeout(settings)}`,
    'tcp_keepalives_idle=10',
    'tcp_keepalives_interval=5',
    'tcp_keepalives_count=3',
    'tcp_user_timeout=25s',
    'wal_sender_timeout=15s',
  ]
    .map((setting) => `-c ${setting}`)
    .join(' ');

/** It makes a segment by writing zeros, and opens none that it was killed over. */
export async function emptyHalfMade({ directory, seed }: WalReceiverOptions): Promise<void> {
  for (const name of await readdir(directory)) {
    if (!name.endsWith('.partial')) continue;
    const path = join(directory, name);
    if ((await stat(path)).size !== seed.segmentBytes) await truncate(path);
  }
}

/**
 * Starts the program and waits until its WAL sender streams; when that fails, the program is gone.
 *
 * @throws {CloneError} What `explainEnd` says, and `WAL_RECEIVER_FAILED` if it does not begin to stream.
 */
export async function startStreaming(
  options: WalReceiverOptions,
  signal: AbortSignal,
): Promise<RunningProcess> {
  const { binDirectory, settings, applicationName, directory, session, inheritedFds } = options;
  // The WAL sender of a stream that broke may not have noticed yet, and has the same name.
  const others = await session.query<{ pid: number }>(
    'SELECT pid FROM pg_stat_replication WHERE application_name = $1',
    [applicationName],
    signal,
  );
  const child = await startProcess(
    {
      file: join(binDirectory, 'pg_receivewal'),
      // Without --no-loop it would try for ever to get a segment that is no longer there (R4.4).
      args: [
        `--directory=${directory}`,
        // The rest comes from its environment.
        `--dbname=${CONNECTION_OPTIONS}`,
        '--no-loop',
        '--no-password',
        // A signal that comes at the wrong moment is noticed only after this many seconds (R4.6).
        '--status-interval=1',
      ],
      env: libpqEnvironment(settings, { applicationName, options: serverOptions(settings) }),
      inheritedFds,
    },
    { killAfterMs: KILL_AFTER_MS },
  );
  try {
    const ended: { exit?: Exit } = {};
    void child.exited.then((exit) => {
      ended.exit = exit;
    });
    const limitMs = performance.now() + START_LIMIT_MS;
    for (;;) {
      const streaming = await session.query(
        `SELECT FROM pg_stat_replication
          WHERE application_name = $1 AND pid <> ALL ($2) AND state IN ('catchup', 'streaming')`,
        [applicationName, others.map(({ pid }) => pid)],
        signal,
      );
      if (streaming.length > 0) return child;
      if (ended.exit !== undefined) throw await explainEnd(options, child, ended.exit, signal);
      if (performance.now() > limitMs) {
        throw new CloneError('WAL_RECEIVER_FAILED', 'pg_receivewal does not begin to stream', {
          facts: { applicationName, stderr: child.stderrTail() },
          hint: 'See the log of the source for what its WAL sender waits for.',
        });
      }
      await Promise.race([child.exited, delay(POLL_MS)]);
    }
  } catch (error) {
    await child.stop('SIGINT');
    throw error;
  }
}

/**
 * Why it ended. Told by what the source answers now, not by its words, which depend on its language.
 *
 * @returns `WAL_RECEIVER_FAILED` if nothing stands against another try.
 */
export async function explainEnd(
  options: WalReceiverOptions,
  child: RunningProcess,
  exit: Exit,
  signal: AbortSignal,
): Promise<CloneError> {
  const { settings, applicationName, session, seed, directory } = options;
  const stderr = child.stderrTail();
  try {
    await probePatiently(settings, { applicationName, signal });
    const next = (await completeUpTo(options)) ?? segmentStart(seed);
    const [found] = await session.query<{ oldest: string | null }>(
      `SELECT min(right(name, 16)) AS "oldest" FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'`,
      [],
      signal,
    );
    const wanted = segmentName({ ...seed, lsn: next }).slice(-16);
    if (found?.oldest && wanted < found.oldest) {
      return new CloneError('WAL_REMOVED', `the source has removed WAL that starts at ${next}`, {
        facts: { nextLsn: next, stderr },
        hint: 'Clone with wal.retention pin, or raise wal_keep_size on the source.',
      });
    }
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof CloneError) return error;
    throw error;
  }
  // Its own words about this host are in our language.
  if (/: (?:No space left on device|Disk quota exceeded)$/m.test(stderr)) {
    return new CloneError('TARGET_NO_SPACE', `there is no space left for WAL in ${directory}`, {
      facts: { directory, stderr },
      hint: 'Make room there, or choose a target.temporaryWalDirectory on a larger filesystem.',
    });
  }
  return new CloneError('WAL_RECEIVER_FAILED', `pg_receivewal ended with ${describeExit(exit)}`, {
    facts: { directory, exitStatus: exit.status, stderr },
    hint: 'See its words in the facts, and the log of the source at this time.',
  });
}

/** The WAL sender of the program that has just ended may hold its place for a moment longer. */
async function probePatiently(
  settings: ConnectionSettings,
  options: Parameters<typeof probeReplication>[1],
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await probeReplication(settings, options);
      return;
    } catch (error) {
      const isTaken = error instanceof CloneError && error.code === 'SOURCE_NO_WAL_SENDER';
      if (!isTaken || attempt === PROBES_MAX) throw error;
      await delay(PROBE_PAUSE_MS, undefined, { signal: options.signal });
    }
  }
}

/**
 * Up to where all WAL since the seed is here; null: not a segment yet. A file has its final name only once it is complete
 * and flushed (R4.9).
 */
export async function completeUpTo({
  directory,
  seed,
}: WalReceiverOptions): Promise<string | null> {
  const { segmentBytes } = seed;
  const starts = new Set(
    (await readdir(directory)).map((name) => segmentStartOfName(name, segmentBytes)),
  );
  const from = parseLsn(segmentStart(seed));
  let end = from;
  while (starts.has(end)) end += BigInt(segmentBytes);
  return end === from ? null : formatLsn(end);
}
