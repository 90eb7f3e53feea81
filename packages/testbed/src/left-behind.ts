/**
 * What a clone left behind, on either side.
 *
 * Other tests run on the same machine at the same time: a search for everything named `pgcloned_` would find theirs. So the
 * caller says what only its own run has in its names: the clone's id, or the paths of its scratch directories.
 */
import { readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { PostgresServer } from './postgres-server.ts';
import { listProcesses } from './process-list.ts';

/** A server notices only a moment later that its client has gone. */
const WITHIN_MS = 10_000;
const POLL_MS = 100;

export interface LeftBehindOptions {
  /** Texts of which one is in the name of everything that is looked for. */
  readonly names: readonly string[];
  /** Servers that must have no slot at all, and no session named `pgcloned_…`. Private ones: nobody else uses them. */
  readonly servers?: readonly PostgresServer[];
  /** Directories to look into, beside the temporary one: where temporary things could have been made. */
  readonly directories?: readonly string[];
  /** Slots that are there on purpose. */
  readonly slotsKept?: readonly string[];
  /** Processes that are there on purpose, with all their descendants: a replica that was started. */
  readonly pidsKept?: readonly number[];
  /** How long things may take to vanish. Default: 10 s. */
  readonly withinMs?: number;
}

/** @returns One line for each thing that is still there in the end; empty as soon as there is nothing. */
export async function leftBehind(options: LeftBehindOptions): Promise<string[]> {
  const deadline = Date.now() + (options.withinMs ?? WITHIN_MS);
  for (;;) {
    const found = await look(options);
    if (found.length === 0 || Date.now() > deadline) return found;
    await delay(POLL_MS);
  }
}

async function look(options: LeftBehindOptions): Promise<string[]> {
  const { servers = [], directories = [] } = options;
  const found = await Promise.all([
    processes(options),
    mounts(options),
    ...[tmpdir(), '/dev/shm', ...directories].map((path) => entries(path, options)),
    ...servers.map((server) => slotsAndSessions(server, options)),
  ]);
  return found.flat();
}

const isNamed = (text: string, { names }: LeftBehindOptions) =>
  names.some((name) => text.includes(name));

async function processes(options: LeftBehindOptions): Promise<string[]> {
  const all = await listProcesses();
  const parents = new Map(all.map(({ pid, parentPid }) => [pid, parentPid]));
  const isKept = (pid: number): boolean => {
    if (pid === process.pid || options.pidsKept?.includes(pid) === true) return true;
    const parent = parents.get(pid);
    return parent !== undefined && parent !== process.pid && isKept(parent);
  };
  return all
    .filter(({ pid, args }) => isNamed(args, options) && !isKept(pid))
    .map(({ pid, args }) => `process ${String(pid)}: ${args}`);
}

async function mounts(options: LeftBehindOptions): Promise<string[]> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  return lines.filter((line) => isNamed(line, options)).map((line) => `mount: ${line}`);
}

async function entries(directory: string, options: LeftBehindOptions): Promise<string[]> {
  return (await readdir(directory))
    .map((name) => join(directory, name))
    .filter((path) => isNamed(path.slice(directory.length), options))
    .map((path) => `file: ${path}`);
}

async function slotsAndSessions(
  server: PostgresServer,
  { slotsKept = [] }: LeftBehindOptions,
): Promise<string[]> {
  const rows = await server.query<{ thing: string }>(
    `select format('slot %s of port ${String(server.port)}', slot_name) as thing
       from pg_replication_slots where slot_name <> all ($1::text[])
     union all
     select format('%s %s of port ${String(server.port)}: %s', backend_type, pid, application_name)
       from pg_stat_activity where application_name ^@ 'pgcloned'`,
    [slotsKept],
  );
  return rows.map(({ thing }) => thing);
}
