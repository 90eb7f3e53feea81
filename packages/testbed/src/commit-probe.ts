/**
 * Whether a server lets its clients commit: one session that does so all the time and takes the time of each.
 *
 * A commit that fails, and one that is not begun because nobody can connect, tell of a server that is away and are not
 * counted; one that hangs counts as long as it hangs.
 */
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import type { PostgresServer } from './postgres-server.ts';

const INTERVAL_MS = 50;

export interface CommitProbe extends AsyncDisposable {
  /** The longest commit since the start, in milliseconds. */
  readonly longestMs: () => number;
  /** Settles once nothing is written any more. */
  stop(): Promise<void>;
}

/** Settles after the first commit. Its table stays: `commit_probe`. */
export async function startCommitProbe(server: PostgresServer): Promise<CommitProbe> {
  await server.query('CREATE TABLE IF NOT EXISTS commit_probe (commits int NOT NULL)');
  await server.query(
    'INSERT INTO commit_probe SELECT 0 WHERE NOT EXISTS (SELECT FROM commit_probe)',
  );
  const stopping = new AbortController();
  const first = Promise.withResolvers<void>();
  let longestMs = 0;
  let beganAtMs: number | null = null;
  const commit = async () => {
    const client = new pg.Client({
      host: server.socketDirectory,
      port: server.port,
      user: 'postgres',
      options: '-c synchronous_commit=on',
      application_name: 'commit probe',
    });
    // A session that the server ends also rejects its query.
    client.on('error', () => {});
    try {
      await client.connect();
      while (!stopping.signal.aborted) {
        beganAtMs = performance.now();
        await client.query('UPDATE commit_probe SET commits = commits + 1');
        longestMs = Math.max(longestMs, performance.now() - beganAtMs);
        beganAtMs = null;
        first.resolve();
        await delay(INTERVAL_MS);
      }
    } finally {
      beganAtMs = null;
      await client.end();
    }
  };
  const ended = (async () => {
    while (!stopping.signal.aborted) {
      // The server is away: that is for others to look at.
      await commit().catch(() => {});
      await delay(INTERVAL_MS);
    }
  })();
  const stop = async () => {
    stopping.abort();
    await ended;
  };
  await first.promise;
  return {
    longestMs: () => Math.max(longestMs, beganAtMs === null ? 0 : performance.now() - beganAtMs),
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
