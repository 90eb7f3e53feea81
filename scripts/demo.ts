/**
 * `npm run demo`: a primary that is written to becomes, by one POST, a standby that streams.
 *
 * Everything is real, lies below the temporary directory on ports of its own, and is gone at the end. With `--keep` it
 * runs on until Ctrl-C, and the last lines say how to look around.
 */
import { spawn } from 'node:child_process';
import { addAbortListener, once } from 'node:events';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  adoptServer,
  freePort,
  leftBehind,
  makeDirectory,
  PGCLONED,
  type Pgcloned,
  type PostgresServer,
  scratchDirectory,
  startPgcloned,
  startSource,
  startWriteLoad,
  stopServer,
  waitForReplay,
} from '@pgcloned/testbed';

/** 300 MB, and a limit that makes some seconds of it: long enough to watch. */
const PGBENCH_SCALE = 20;
const MAX_RATE = 60_000_000;

const { values: options } = parseArgs({ options: { keep: { type: 'boolean', default: false } } });
const stopping = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.on(name, () => {
    stopping.abort(new Error(`stopped by ${name}`));
  });
}
try {
  await demo(stopping.signal);
} catch (error) {
  console.error(stopping.signal.aborted ? '\nstopped, and everything removed' : error);
  process.exitCode = stopping.signal.aborted ? 130 : 1;
}

async function demo(signal: AbortSignal): Promise<void> {
  await using scratch = await scratchDirectory();
  const tablespace = join(scratch.path, 'primary', 'fast disk');
  const replicaRoot = join(scratch.path, 'replica');
  const dataDirectory = join(replicaRoot, 'data');
  await makeDirectory(replicaRoot);

  say('1. A primary with a tablespace, which pgbench writes to, and its sshd');
  await using source = await startSource({
    dataDirectory: join(scratch.path, 'primary', 'data'),
    settings: { fsync: 'on', max_wal_size: '256MB' },
  });
  const { primary, sshd } = source;
  await primary.createTablespace('fast', tablespace);
  await using load = await startWriteLoad(primary, {
    scale: PGBENCH_SCALE,
    tablespaces: ['fast'],
  });
  const [facts] = await primary.query<{ version: string; size: string }>(
    `select current_setting('server_version') as version,
            pg_size_pretty(sum(pg_database_size(oid))) as size from pg_database`,
  );
  note(`PostgreSQL ${facts?.version ?? ''} on port ${String(primary.port)}, ${facts?.size ?? ''}`);
  note(`sshd on port ${String(sshd.port)}`);
  signal.throwIfAborted();

  await using undo = new AsyncDisposableStack();
  // A started replica outlives whoever started it.
  undo.defer(() => stopServer(dataDirectory));

  say('2. pgcloned up: API, worker and Redis');
  await using pgcloned = await startPgcloned(scratch.path, {
    host: 'replica-1',
    worker: { dataRoots: [replicaRoot] },
    sources: { orders: source.configuration },
  });
  note(pgcloned.url);
  signal.throwIfAborted();

  say('3. One POST');
  const request = {
    source: { name: 'orders' },
    target: {
      host: 'replica-1',
      dataDirectory,
      tablespaces: { [tablespace]: join(replicaRoot, 'fast disk') },
    },
    transfer: { maxRate: MAX_RATE },
    replica: { start: true, waitFor: 'streaming', port: await freePort() },
  };
  note(`POST ${pgcloned.url}/v1/clones`);
  note(JSON.stringify(request, null, 2));
  const { status, body: clone } = await pgcloned.request('POST', '/v1/clones', request);
  note(`answered by ${String(status)}${status === 202 ? `: clone ${String(clone.id)}` : ''}`);
  if (status !== 202) throw new Error(JSON.stringify(clone, null, 2));

  say(`4. The copy, slowed down to ${String(MAX_RATE / 1e6)} MB/s so that it can be watched`);
  await watch(pgcloned, String(clone.id), signal);

  say('5. The standby');
  const standby = await adoptServer(dataDirectory);
  await showReplication(primary, standby);

  say('6. What the clone left behind: processes, slots, sessions, files, mounts');
  const left = await leftBehind({
    names: [String(clone.id)],
    servers: [primary],
    directories: [replicaRoot, scratch.path],
  });
  for (const line of left) note(line);
  note(`${String(left.length)} found`);

  if (options.keep) {
    explain({ pgcloned, primary, standby });
    if (!signal.aborted) await once(signal, 'abort');
    console.log();
  }
  await load.stop();
  if (left.length > 0) throw new Error('the clone left something behind');
  say('Everything is stopped and removed.');
}

/** Shows the progress as the command line does. */
async function watch(pgcloned: Pgcloned, id: string, signal: AbortSignal): Promise<void> {
  const child = spawn(process.execPath, [PGCLONED, 'clone', 'watch', id], {
    stdio: 'inherit',
    env: { ...process.env, PGCLONED_URL: pgcloned.url, PGCLONED_TOKEN: pgcloned.token },
  });
  using _ = addAbortListener(signal, () => child.kill('SIGINT'));
  const [exitStatus] = (await once(child, 'exit')) as [number | null];
  signal.throwIfAborted();
  if (exitStatus !== 0) throw new Error(`the clone failed; the log is ${pgcloned.logFile}`);
}

async function showReplication(primary: PostgresServer, standby: PostgresServer): Promise<void> {
  await primary.query('create table greeting (text text)');
  await primary.query(`insert into greeting values ('written on the primary at ' || now())`);
  await waitForReplay(primary, standby);
  const [row] = await standby.query<{ text: string }>('select text from greeting');
  const [sender] = await primary.query<{ state: string; lag: string }>(
    `select state, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) as lag
       from pg_stat_replication`,
  );
  note(
    `port ${String(standby.port)}: ${sender?.state ?? 'not there'}, ${sender?.lag ?? '?'} behind`,
  );
  note(`read on the standby: ${row?.text ?? 'nothing'}`);
  if (row === undefined) throw new Error('the row did not arrive');
}

function explain(o: {
  readonly pgcloned: Pgcloned;
  readonly primary: PostgresServer;
  readonly standby: PostgresServer;
}): void {
  const { url, tokenFile, logFile } = o.pgcloned;
  say('Everything runs on. In another terminal, in this directory:');
  note(`psql -h 127.0.0.1 -p ${String(o.primary.port)} -U postgres    # the primary`);
  note(`psql -h 127.0.0.1 -p ${String(o.standby.port)} -U postgres    # the standby`);
  note(`export PGCLONED_URL=${url} PGCLONED_TOKEN=$(cat ${tokenFile})`);
  note('npx pgcloned clone list');
  note(`the API is described at ${url}/docs, and pgcloned writes to ${logFile}`);
  note('Ctrl-C stops everything and removes it.');
}

function say(text: string): void {
  console.log(`\n${text}`);
}

function note(text: string): void {
  console.log(text.replace(/^/gm, '   '));
}
