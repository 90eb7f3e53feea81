/**
 * The rows of the matrix: what is struck, how it is mended as its operator would, and what is promised for each phase.
 *
 * A strike is quick and leaves the mending to `mend`, because the clone is let go in between. Where a row needs something
 * that is there only in some phases, `find` looks for it: that there is nothing is found out, not believed.
 */
import { existsSync, readFileSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Clone } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import {
  descendantsOf,
  type ListedProcess,
  leftBehind,
  listProcesses,
  type PostgresServer,
  type TestFilesystem,
} from '@pgcloned/testbed';
import type { Transfer } from './clone-under-test.ts';
import {
  complete,
  cutOff,
  everywhere,
  fails,
  goesOn,
  nothing,
  type Promises,
  resumes,
} from './promises.ts';
import type { Setting, Stage } from './stage.ts';

export interface Struck {
  readonly stage: Stage;
  readonly clone: Clone;
  /** When, by `performance.now`. */
  readonly atMs: number;
}

export interface Row {
  /** `npm run kill-matrix -- --only "NAME/PHASE"` */
  readonly name: string;
  readonly promises: Promises;
  /** Where it is played. Default: `primary`. */
  readonly setting?: Setting;
  /** The processes or backends that are struck; empty if there are none now. Missing: what is struck is always there. */
  readonly find?: (struck: Struck) => Promise<readonly number[]>;
  readonly strike: (struck: Struck, pids: readonly number[]) => Promise<void>;
  /** What a cell looks at before it mends. */
  readonly requireMeanwhile?: (struck: Struck) => Promise<void>;
  /** Settles once everything runs again that ran before. */
  readonly mend: (struck: Struck, pids: readonly number[]) => Promise<void>;
  /** What is mended only when the clone has ended. */
  readonly mendAfterwards?: (stage: Stage) => Promise<void>;
  /** Of the clone, beside what the phase needs. */
  readonly transfer?: Transfer;
  /** What is struck is away until the clone has ended. */
  readonly isForGood?: boolean;
  /** Takes more than a minute: not for the sample and the random rounds. */
  readonly isLong?: boolean;
}

/** The lease, and what is promised beyond it. */
export const CLEAN_WITHIN_MS = (15 + 30) * 1000;

const SIGNALS = ['SIGKILL', 'SIGTERM'] as const;
type EndSignal = (typeof SIGNALS)[number];
const spell = (signal: EndSignal) => (signal === 'SIGKILL' ? 'kill -9' : 'SIGTERM');

/** What mends itself. */
export const asBefore = async () => {};

const TOOL_TIMEOUT_MS = 60_000;

/** How long a disk is full that is freed. */
const FULL_MS = 4_000;

const onlyInCopy = everywhere(nothing, { 'copy-files': goesOn });

const whileWalStreams = everywhere(goesOn, {
  preflight: nothing,
  publish: nothing,
  'start-replica': nothing,
});

/** The backup dies with its session. */
const sessionLost = everywhere(resumes, { 'start-replica': complete('SOURCE_LOST') });

/** Its sessions hear of the death of their postmaster a moment later, and publishing needs none of them. */
const serverKilled: Promises = { ...sessionLost, publish: complete('SOURCE_LOST') };

const SERVER_SIGNALS = { fast: 'SIGINT', immediate: 'SIGQUIT', killed: 'SIGKILL' } as const;

export const settingOf = ({ setting = 'primary' }: Row) => setting;

/** The same elsewhere: what is different there are the promises, if anything is. */
const inSetting = (setting: Setting, where: string, rows: readonly Row[]): readonly Row[] =>
  rows.map((row) => ({ ...row, setting, name: `${where}: ${row.name}` }));

const backupSessionEnds: Row = {
  name: 'backup session, pg_terminate_backend',
  promises: sessionLost,
  find: backupSession,
  strike: terminate,
  mend: asBefore,
};

const pinSessionEnds: Row = {
  name: 'pin session, pg_terminate_backend',
  promises: everywhere(goesOn, { preflight: nothing }),
  find: pinSession,
  strike: terminate,
  mend: asBefore,
};

const linkReset: Row = {
  name: 'link reset',
  promises: sessionLost,
  strike: async ({ stage }) => {
    await stage.host.reset();
  },
  mend: asBefore,
};

const linkBlinks = link('link dead for 5 s', 5_000, everywhere(goesOn));

const isPrimary = ({ source }: Stage) => source.primary;
const isCloned = ({ server }: Stage) => server;

export const ROWS: readonly Row[] = [
  ...SIGNALS.map(worker),
  ...SIGNALS.map(api),
  ...SIGNALS.map(redis),
  ...SIGNALS.map((signal) => oneProcess('rsyncd', signal, onlyInCopy, rsyncd)),
  ...SIGNALS.map((signal) => oneProcess('lease wrapper of rsyncd', signal, onlyInCopy, wrapper)),
  ...SIGNALS.map((signal) => oneProcess('guard of the lease', signal, onlyInCopy, guard)),
  ...SIGNALS.map((signal) => oneProcess('one rsync client', signal, onlyInCopy, rsyncClient)),
  {
    ...oneProcess('ssh client of a worker', 'SIGKILL', onlyInCopy, sshClient),
    transfer: { transport: 'ssh' },
  },
  ...SIGNALS.map((signal) => oneProcess('pg_receivewal', signal, whileWalStreams, receiver)),
  backupSessionEnds,
  {
    name: 'backup session, kill -9',
    promises: sessionLost,
    find: backupSession,
    strike: kill9,
    mend: untilPrimaryAnswers,
  },
  pinSessionEnds,
  {
    name: 'pin session, kill -9',
    promises: everywhere(resumes, {
      preflight: nothing,
      'start-replica': complete('SOURCE_LOST'),
    }),
    find: pinSession,
    strike: kill9,
    mend: untilPrimaryAnswers,
  },
  ...SIGNALS.map(sshd),
  ...(['fast', 'immediate', 'killed'] as const).map((mode) =>
    server('primary', mode, isPrimary, sessionLost),
  ),
  linkBlinks,
  {
    ...link('link dead for 60 s', 60_000, {
      ...sessionLost,
      // Publishing needs no source, and is done before the loss is noticed.
      publish: complete('SOURCE_LOST'),
    }),
    isLong: true,
  },
  linkReset,
  full('target disk full, freed after 4 s', ({ data }) => data, {
    isFreed: true,
    promises: everywhere(fails('TARGET_NO_SPACE'), {
      'copy-files': goesOn,
      'start-replica': complete('REPLICA_START_FAILED'),
    }),
  }),
  full('target disk full', ({ data }) => data, {
    isFreed: false,
    promises: everywhere(fails('TARGET_NO_SPACE'), {
      'start-replica': complete('REPLICA_START_FAILED'),
    }),
  }),
  full('WAL directory full', ({ wal }) => wal, {
    isFreed: false,
    promises: everywhere(fails('TARGET_NO_SPACE'), {
      'start-replica': complete('REPLICA_START_FAILED'),
    }),
  }),
  {
    name: 'pin invalidated by max_slot_wal_keep_size',
    isLong: true,
    promises: everywhere(goesOn, {
      preflight: nothing,
      // The stream is at its end: what goes now is gone before the standby asks for it.
      'collect-wal': cutOff('REPLICA_START_FAILED'),
      publish: cutOff('REPLICA_START_FAILED'),
    }),
    find: pinSession,
    strike: async (struck, pids) => {
      if (!(await isHeldByServer(struck))) await invalidatePin(struck, pids);
    },
    mend: invalidatePin,
  },
  ...inSetting('standby', 'from a standby', [
    worker('SIGKILL'),
    oneProcess('pg_receivewal', 'SIGKILL', whileWalStreams, receiver),
    backupSessionEnds,
    pinSessionEnds,
    sshd('SIGKILL'),
    server('standby', 'fast', isCloned, sessionLost),
    server('standby', 'killed', isCloned, serverKilled),
    server('its primary', 'killed', isPrimary, everywhere(goesOn)),
    linkBlinks,
    linkReset,
  ]),
  ...inSetting('tunnel', 'through a tunnel', [
    worker('SIGKILL'),
    oneProcess('pg_receivewal', 'SIGKILL', whileWalStreams, receiver),
    backupSessionEnds,
    pinSessionEnds,
    // Sessions end with it.
    { ...sshd('SIGKILL'), promises: sessionLost },
    server('primary', 'killed', isPrimary, serverKilled),
    linkBlinks,
    linkReset,
  ]),
  ...inSetting('local', 'by reflinks', [
    ...SIGNALS.map(worker),
    backupSessionEnds,
    pinSessionEnds,
    server('primary', 'killed', isPrimary, serverKilled),
  ]),
  ...inSetting('hosts', 'of several', [
    worker('SIGKILL'),
    {
      name: 'standby that is copied, kill -9, for good',
      isForGood: true,
      promises: serverKilled,
      strike: async ({ stage }) => {
        process.kill(stage.server.pid, SERVER_SIGNALS.killed);
      },
      mend: async ({ stage }) => {
        await stage.server.untilDead();
      },
      mendAfterwards: async ({ server: standby }) => {
        await standby.start();
      },
    },
    {
      name: 'host of the standby that is copied, power cut',
      // Its sessions are missed after 25 s.
      isLong: true,
      promises: serverKilled,
      strike: async ({ stage }) => {
        await stage.host.vanish();
      },
      mend: asBefore,
      mendAfterwards: async ({ host }) => {
        await host.reappear();
      },
    },
  ]),
];

function worker(signal: EndSignal): Row {
  return {
    name: `worker, ${spell(signal)}`,
    promises: everywhere(resumes, {
      'start-replica': complete(signal === 'SIGKILL' ? 'WORKER_LOST' : 'WORKER_STOPPED'),
    }),
    strike: async ({ stage }) => {
      // One that may tidy up ends only when the clone has been let go.
      process.kill(stage.pgcloned.pid, signal);
    },
    requireMeanwhile: async (struck) => {
      // Only waits for its end: a second signal of the same kind would not let it tidy up.
      await struck.stage.pgcloned.stop('SIGCONT', 'worker');
      // After a kill -9 nobody is there to tidy up: the source has to by itself.
      await requireSourceClean(struck, []);
    },
    mend: async ({ stage }) => {
      await stage.pgcloned.stop('SIGCONT', 'worker');
      await stage.pgcloned.start();
    },
  };
}

async function requireSourceClean(
  { stage, clone }: Struck,
  pidsKept: readonly number[],
): Promise<void> {
  const found = await leftBehind({
    names: [`pgcloned_${clone.id}`],
    servers: stage.servers,
    withinMs: CLEAN_WITHIN_MS,
    pidsKept,
  });
  if (found.length > 0) throw new Error(`left on the source meanwhile: ${found.join('; ')}`);
}

function api(signal: EndSignal): Row {
  return {
    name: `api, ${spell(signal)}`,
    promises: everywhere(goesOn),
    strike: async ({ stage }) => {
      await stage.pgcloned.stop(signal, 'api');
    },
    mend: async ({ stage }) => {
      await stage.pgcloned.start();
    },
  };
}

function redis(signal: EndSignal): Row {
  return {
    name: `Redis, ${spell(signal)}`,
    promises: everywhere(goesOn),
    strike: async ({ stage }) => {
      await stage.redis.stop(signal);
    },
    mend: async ({ stage }) => {
      await stage.redis.start();
    },
  };
}

/** One process of the clone; nobody mends it but the clone. */
function oneProcess(
  what: string,
  signal: EndSignal,
  promises: Promises,
  find: (struck: Struck) => Promise<readonly number[]>,
): Row {
  return {
    name: `${what}, ${spell(signal)}`,
    promises,
    find,
    strike: async (_struck, [pid = 0]) => {
      process.kill(pid, signal);
    },
    mend: asBefore,
  };
}

/** The listener: it leads, its connections look the same. */
async function rsyncd({ clone }: Struck): Promise<readonly number[]> {
  const all = await listProcesses();
  const isDaemon = ({ args }: ListedProcess) =>
    args.startsWith('rsync --daemon') && args.includes(`pgcloned_${clone.id}_`);
  const daemons = all.filter(isDaemon);
  const pids = new Set(daemons.map(({ pid }) => pid));
  return daemons.filter(({ parentPid }) => !pids.has(parentPid)).map(({ pid }) => pid);
}

/** The directory that the wrapper makes on the source bears its pid. */
async function leaseDirectory({ clone }: Struck): Promise<string | undefined> {
  return (await readdir(tmpdir())).find((name) => name.startsWith(`pgcloned_${clone.id}_`));
}

async function wrapper(struck: Struck): Promise<readonly number[]> {
  const directory = await leaseDirectory(struck);
  return directory === undefined ? [] : [Number(directory.split('.')[1])];
}

async function guard(struck: Struck): Promise<readonly number[]> {
  const directory = await leaseDirectory(struck);
  if (directory === undefined) return [];
  return [Number(readFileSync(join(tmpdir(), directory, 'guard'), 'utf8'))];
}

async function childOfWorker({ stage }: Struck, command: RegExp): Promise<readonly number[]> {
  const children = descendantsOf(stage.pgcloned.pid, await listProcesses());
  return children.filter(({ args }) => command.test(args)).map(({ pid }) => pid);
}

/** The parent of the two processes that one transfer has comes first. */
async function rsyncClient(struck: Struck): Promise<readonly number[]> {
  return await childOfWorker(struck, /^rsync .*--files-from/);
}

/** The connection of one worker, by which its rsyncs come. */
async function sshClient(struck: Struck): Promise<readonly number[]> {
  return await childOfWorker(struck, /^ssh .* -N /);
}

async function receiver(struck: Struck): Promise<readonly number[]> {
  return await childOfWorker(struck, /pg_receivewal/);
}

async function sessions({ stage, clone }: Struck, condition: string): Promise<readonly number[]> {
  const rows = await stage.server.query<{ pid: number }>(
    `SELECT pid FROM pg_stat_activity a
      WHERE application_name LIKE 'pgcloned_${clone.id}_%' AND backend_type = 'client backend'
        AND ${condition} (SELECT FROM pg_replication_slots WHERE active_pid = a.pid)`,
  );
  return rows.map(({ pid }) => pid);
}

async function backupSession(struck: Struck): Promise<readonly number[]> {
  return await sessions(struck, 'NOT EXISTS');
}

async function pinSession(struck: Struck): Promise<readonly number[]> {
  return await sessions(struck, 'EXISTS');
}

async function terminate({ stage }: Struck, pids: readonly number[]): Promise<void> {
  await stage.server.query('SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid', [pids]);
}

/** The postmaster takes it for a crash and restarts all of the server. */
async function kill9(_struck: Struck, pids: readonly number[]): Promise<void> {
  for (const pid of pids) process.kill(pid, 'SIGKILL');
}

async function untilPrimaryAnswers({ stage }: Struck, killed: readonly number[]): Promise<void> {
  // Until the postmaster has collected them it answers as if nothing had happened.
  while (killed.some((pid) => existsSync(`/proc/${String(pid)}`))) await delay(10);
  for (;;) {
    try {
      await stage.server.query('SELECT 1');
      return;
    } catch {
      // It recovers.
      await delay(100);
    }
  }
}

function sshd(signal: EndSignal): Row {
  return {
    name: `sshd with its connections, ${spell(signal)}`,
    promises: everywhere(goesOn, {
      // What is read over SSH before the copy has no second try within the attempt.
      preflight: resumes,
      'stream-wal': resumes,
      'start-backup': resumes,
    }),
    strike: async ({ stage }) => {
      await stage.source.sshd.kill(signal);
    },
    mend: async ({ stage }) => {
      await stage.source.sshd.start();
    },
  };
}

function server(
  what: string,
  mode: keyof typeof SERVER_SIGNALS,
  which: (stage: Stage) => PostgresServer,
  promises: Promises,
): Row {
  return {
    name: mode === 'killed' ? `${what}, kill -9` : `${what}, restart ${mode}`,
    promises,
    // A server ends only when the clone, and what is suspended for it, is let go: `mend` waits for it.
    strike: async ({ stage }) => {
      process.kill(which(stage).pid, SERVER_SIGNALS[mode]);
    },
    mend: async ({ stage }) => {
      await which(stage).untilDead();
      await which(stage).start();
    },
  };
}

function link(name: string, deadMs: number, promises: Promises): Row {
  return {
    name,
    promises,
    strike: async ({ stage }) => {
      await stage.host.cut();
    },
    ...(deadMs > CLEAN_WITHIN_MS && {
      // The other end of the cable is not expected to give up.
      requireMeanwhile: async (struck) => {
        await requireSourceClean(struck, [struck.stage.pgcloned.pid]);
      },
    }),
    mend: async ({ stage, atMs }) => {
      await delay(Math.max(0, deadMs - (performance.now() - atMs)));
      await stage.host.mend();
    },
  };
}

function full(
  name: string,
  which: (stage: Stage) => TestFilesystem,
  { isFreed, promises }: { readonly isFreed: boolean; readonly promises: Promises },
): Row {
  const ballastOf = (stage: Stage) => join(which(stage).path, 'ballast');
  return {
    name,
    promises,
    strike: async ({ stage }) => {
      // It ends when there is no space left, and others who write meanwhile only hasten that.
      await runProcess(
        { file: 'dd', args: ['if=/dev/zero', `of=${ballastOf(stage)}`, 'bs=256k'], env: {} },
        { signal: AbortSignal.timeout(TOOL_TIMEOUT_MS), accept: [1] },
      );
    },
    mend: async ({ stage }) => {
      if (!isFreed) return;
      await delay(FULL_MS);
      await rm(ballastOf(stage));
    },
    mendAfterwards: async (stage) => {
      await rm(ballastOf(stage), { force: true });
    },
  };
}

/** Whether what the clone waits for is suspended (moments.ts): then neither a checkpoint nor a stream gets on. */
async function isHeldByServer({ stage: { source } }: Struck): Promise<boolean> {
  const rows = await source.primary.query<{ pid: number }>(
    `SELECT pid FROM pg_stat_activity WHERE backend_type IN ('checkpointer', 'walsender')`,
  );
  const states = rows.map(({ pid }) => readFileSync(`/proc/${String(pid)}/stat`, 'utf8'));
  return states.some((text) => text.includes(') T '));
}

/**
 * Segments go by until a checkpoint finds that the slot keeps more than it may. Whoever streams has them by then: what is
 * lost is the pin and no WAL. Does nothing to a pin that was made since.
 */
async function invalidatePin(
  { stage: { source } }: Struck,
  pids: readonly number[],
): Promise<void> {
  const { primary: server } = source;
  const set = async (statement: string) => {
    await server.query(`ALTER SYSTEM ${statement}`);
    await server.query('SELECT pg_reload_conf()');
  };
  await set(`SET max_slot_wal_keep_size = '1MB'`);
  // It goes beyond the other limit.
  await set('SET wal_keep_size = 0');
  const kept = `SELECT FROM pg_replication_slots WHERE active_pid = ANY ($1) AND wal_status <> 'lost'`;
  while ((await server.query(kept, [pids])).length > 0) {
    for (let segment = 0; segment < 3; segment += 1) {
      await server.query(`SELECT pg_logical_emit_message(true, 'kill matrix', '')`);
      await server.query('SELECT pg_switch_wal()');
    }
    const [now] = await server.query<{ lsn: string }>('SELECT pg_current_wal_lsn()::text AS lsn');
    const behind = 'SELECT FROM pg_stat_replication WHERE coalesce(write_lsn < $1::pg_lsn, true)';
    while ((await server.query(behind, [now?.lsn])).length > 0) await delay(20);
    await server.query('CHECKPOINT');
  }
  await set('RESET wal_keep_size');
  await set('RESET max_slot_wal_keep_size');
}
