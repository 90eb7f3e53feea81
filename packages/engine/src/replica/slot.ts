/**
 * The permanent replication slot of the standby, which the caller asked for (`replica.slot`).
 *
 * It is made just before the backup ends: then it keeps all WAL from the end of the backup on (R5.7), and stands on the
 * source for seconds only until the clone is published. A file in the unfinished clone says that it is ours, so that a
 * sweep after `kill -9` can drop it: a slot that nobody uses fills the disk of the source.
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  CloneError,
  formatServer,
  type Leftover,
  type ServerAddress,
  serversOf,
} from '@pgcloned/contract';
import { type ConnectionSettings, openSession, type Session } from '@pgcloned/postgres';
import { ifMissing, writeDurably } from '@pgcloned/process';
import { withCleanup } from '../cleanup.ts';
import type { CloneRun } from '../clone-run.ts';
import { reachDatabase } from '../reach-database.ts';
import type { Place } from '../target/layout.ts';
import { isPublished } from '../target/marker.ts';

/** Not in a clone that is published. */
export const SLOT_NOTE = 'pgcloned.replica-slot';
/** What the server says of a second slot of one name. */
const DUPLICATE_OBJECT = '42710';
/** What it says of one whose standby has gone a moment ago. */
const OBJECT_IN_USE = '55006';
const DROP_TRIES_MAX = 25;
const DROP_PAUSE_MS = 200;

/** @throws {CloneError} `SOURCE_SETTINGS_UNSUITABLE` if there is a slot of this name. */
export async function refuseExistingSlot(
  session: Session,
  slotName: string,
  signal: AbortSignal,
): Promise<void> {
  const found = await session.query(
    'SELECT FROM pg_replication_slots WHERE slot_name = $1',
    [slotName],
    signal,
  );
  if (found.length > 0) throw existsAlready(slotName);
}

function existsAlready(slotName: string): CloneError {
  return new CloneError(
    'SOURCE_SETTINGS_UNSUITABLE',
    `replication slot ${slotName} exists already`,
    {
      facts: { slot: slotName },
      hint: `Choose another replica.slot, or drop it if nobody needs it: SELECT pg_drop_replication_slot('${slotName}').`,
    },
  );
}

export async function makeReplicaSlot(
  run: CloneRun,
  {
    session,
    settings,
    address,
    slotName,
    data,
  }: {
    readonly session: Session;
    readonly settings: ConnectionSettings;
    /** The server by its configuration. */
    readonly address: ServerAddress;
    readonly slotName: string;
    readonly data: Place;
  },
): Promise<void> {
  const { host, port } = address;
  const noted: NotedSlot = { slotName, server: { host, port } };
  await writeDurably(join(data.build, SLOT_NOTE), JSON.stringify(noted));
  let isOurs = true;
  run.cleanup.onFailure({
    ...leftoverOf(noted),
    undo: async (signal) => {
      if (!isOurs) return;
      await dropSlot(settings, { slotName, applicationName: run.name, signal });
      // Whatever gets this name from now on is another's.
      await forgetNotedSlot(data.build);
      // Whoever starts it later needs it, but until then it would fill the disk of the source.
      if (await isPublished(data.final, run.plan.id))
        run.observer.log('warn', 'the slot of the replica was dropped; make it again with', {
          sql: `SELECT pg_create_physical_replication_slot('${slotName}', true)`,
        });
    },
  });
  try {
    await session.query(
      'SELECT pg_create_physical_replication_slot($1, true)',
      [slotName],
      run.signal,
      { isRepeatable: false },
    );
  } catch (error) {
    if ((error as { readonly code?: unknown }).code !== DUPLICATE_OBJECT) throw error;
    // Somebody has made it since the preflight, and it is theirs to drop.
    isOurs = false;
    await forgetNotedSlot(data.build);
    throw existsAlready(slotName);
  }
}

export interface NotedSlot {
  readonly slotName: string;
  /** Where it was made: a later attempt may copy another server. */
  readonly server: ServerAddress;
}

/** The slot that an unfinished clone in this directory has made, or null. */
export async function notedSlot(directory: string): Promise<NotedSlot | null> {
  const note = await readFile(join(directory, SLOT_NOTE), 'utf8').catch(ifMissing(null));
  return note === null ? null : (JSON.parse(note) as NotedSlot);
}

/**
 * Drops it where it was made. That server may be down just now: then whoever reads the record knows what to do.
 *
 * @param dataDirectory The target, which must be locked.
 * @returns What is left.
 */
export async function dropNotedSlot(
  { plan, signal }: Pick<CloneRun, 'plan' | 'signal'>,
  noted: NotedSlot,
  dataDirectory: string,
): Promise<readonly Leftover[]> {
  const { slotName, server } = noted;
  try {
    await withCleanup(
      async (cleanup) => {
        const settings = await reachDatabase({ plan, signal, cleanup }, { server, dataDirectory });
        const applicationName = `pgcloned_${plan.id}_${String(plan.attempt)}`;
        await dropSlot(settings, { slotName, applicationName, signal });
      },
      // A socket of a tunnel at the most, which the next clone of the directory removes.
      () => {},
    );
    return [];
  } catch {
    signal.throwIfAborted();
    return [leftoverOf(noted)];
  }
}

/** As `dropNotedSlot`. What could not be dropped is told of as left, until a later attempt has dropped it. */
export async function putAwayNotedSlot(
  run: CloneRun,
  noted: NotedSlot,
  data: Place,
): Promise<void> {
  const left = await dropNotedSlot(run, noted, data.final);
  for (const leftover of left) run.observer.leftover(leftover);
  if (left.length > 0) return;
  run.observer.putAway(leftoverOf(noted).what);
  // Whatever gets this name from now on is another's.
  await forgetNotedSlot(data.build);
}

/**
 * Drops the slot of a standby that is removed. Where the source may be several servers, it is dropped only if it is known
 * which of them was copied.
 *
 * @param o.copiedServer `HOST:PORT`; null: unknown.
 * @param o.dataDirectory Of the standby, which must be locked.
 * @returns What is left.
 */
export async function dropReplicaSlot(
  run: Pick<CloneRun, 'plan' | 'signal'>,
  {
    slotName,
    copiedServer,
    dataDirectory,
  }: {
    readonly slotName: string;
    readonly copiedServer: string | null;
    readonly dataDirectory: string;
  },
): Promise<readonly Leftover[]> {
  const servers = serversOf(run.plan.source);
  const server =
    servers.length === 1
      ? servers[0]
      : servers.find((candidate) => formatServer(candidate) === copiedServer);
  if (server === undefined) return [replicaSlotLeft(slotName, copiedServer ?? 'the source')];
  return await dropNotedSlot(run, { slotName, server }, dataDirectory);
}

const leftoverOf = ({ slotName, server }: NotedSlot): Leftover =>
  replicaSlotLeft(slotName, formatServer(server));

export const replicaSlotLeft = (slotName: string, server: string): Leftover => ({
  what: `replication slot ${slotName} on ${server}`,
  remedy: `SELECT pg_drop_replication_slot('${slotName}')`,
});

/** The clone is published: the slot is the user's now. */
export async function forgetNotedSlot(directory: string): Promise<void> {
  await rm(join(directory, SLOT_NOTE), { force: true });
}

/** In a session of its own: the one that made it may be lost. Nothing to do if there is none. */
async function dropSlot(
  settings: ConnectionSettings,
  {
    slotName,
    applicationName,
    signal,
  }: {
    readonly slotName: string;
    readonly applicationName: string;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  await using session = await openSession(settings, { applicationName, signal });
  for (let tries = 1; ; tries += 1) {
    try {
      await session.query(
        'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1',
        [slotName],
        signal,
      );
      return;
    } catch (error) {
      const { code } = error as { readonly code?: unknown };
      if (code !== OBJECT_IN_USE || tries >= DROP_TRIES_MAX) throw error;
      await delay(DROP_PAUSE_MS, undefined, { signal });
    }
  }
}
