/**
 * Reading records, and what is computed when they are read.
 *
 * A record says what its worker last knew. Whether the worker is still heard of, why a queued clone waits, and what was
 * asked for that the worker has not taken up yet, are added here: nobody would be there to write them.
 * Whatever comes out of Redis is checked with the contract's schema again.
 */
import { createHash } from 'node:crypto';
import {
  Clone,
  CloneError,
  type CloneSpec,
  type InstanceWish,
  isPublished,
  type TransferLimits,
  withTransfer,
} from '@pgcloned/contract';
import type { Redis } from 'ioredis';
import type { KnownHost } from './host-registry.ts';
import { parseInstanceWish, withWish } from './instance-wish.ts';
import { cloneKey } from './keys.ts';
import { ask } from './redis-connection.ts';
import type { Fence } from './scripts.ts';
import { parseTransferWish } from './transfer-wish.ts';

export interface StoredClone {
  /** Its transfer is as it was last wished for. */
  readonly clone: Clone;
  readonly fence: Fence;
  readonly cancelRequested: boolean;
  /** Null: it is as it was asked for at first. */
  readonly wishedTransfer: TransferLimits | null;
  /** What its worker has not carried out yet. */
  readonly wishedInstance: InstanceWish | null;
  /** Changes with every write of the record. */
  readonly marker: string;
  /** Whether the record has keys that are not known here: it was written by a later version. */
  readonly isPartial: boolean;
}

/** What stands under the id of a clone and is none: of another version, or tampered with. */
export class RecordUnreadableError extends Error {
  override readonly name = 'RecordUnreadableError';
}

/**
 * @param partly Whether keys that are not known here are left out: good enough to show a clone, not to make one.
 * @returns Undefined if there is none.
 * @throws {RecordUnreadableError} If it is not a clone with this id.
 * @throws {CloneError} `QUEUE_UNAVAILABLE`.
 */
export async function readClone(
  redis: Redis,
  id: string,
  { partly }: { readonly partly: boolean },
): Promise<StoredClone | undefined> {
  const [record, attempt, workerId, cancel, transfer, instance, marker] = await ask(
    redis.hmget(
      cloneKey(id),
      ...['record', 'attempt', 'workerId', 'cancel', 'transfer', 'instance', 'marker'],
    ),
  );
  if (record === null || record === undefined) return undefined;
  const wishedTransfer = parseTransferWish(transfer);
  const { clone, isPartial } = parseRecord(id, record, partly);
  return {
    isPartial,
    clone: wishedTransfer === null ? clone : withTransfer(clone, wishedTransfer),
    wishedTransfer,
    wishedInstance: parseInstanceWish(instance),
    fence: { attempt: Number(attempt), workerId: workerId ?? '' },
    cancelRequested: typeof cancel === 'string',
    marker: marker ?? '',
  };
}

function parseRecord(
  id: string,
  record: string,
  partly: boolean,
): Pick<StoredClone, 'clone' | 'isPartial'> {
  let value: unknown;
  try {
    value = JSON.parse(record);
  } catch (cause) {
    throw new RecordUnreadableError(`the record of clone ${id} is not JSON`, { cause });
  }
  let { data, error } = Clone.safeParse(value);
  const isPartial = data === undefined && partly && removeUnknownKeys(value, error);
  if (isPartial) ({ data, error } = Clone.safeParse(value));
  if (data === undefined) {
    throw new RecordUnreadableError(`the record of clone ${id} cannot be read`, { cause: error });
  }
  if (data.id !== id) throw new RecordUnreadableError(`the record of clone ${id} names another`);
  return { clone: data, isPartial };
}

/** @returns Whether there were any. */
function removeUnknownKeys(
  value: unknown,
  error: ReturnType<typeof Clone.safeParse>['error'],
): boolean {
  let found = false;
  for (const issue of error?.issues ?? []) {
    if (issue.code !== 'unrecognized_keys') continue;
    const parent = issue.path.reduce<unknown>((at, step) => Reflect.get(Object(at), step), value);
    for (const key of issue.keys) found = Reflect.deleteProperty(Object(parent), key) || found;
  }
  return found;
}

/** The clone as callers see it. `host` is what the registry knows of the clone's host. */
export function presentClone(stored: StoredClone, host: KnownHost | undefined): Clone {
  const { cancelRequested, fence } = stored;
  const { instance, waitsTo } = withWish(stored.clone.instance, stored.wishedInstance);
  const clone = { ...stored.clone, instance };
  // Between two attempts a clone is queued, but its worker has it.
  if (clone.state === 'queued' && fence.workerId === '') return presentQueued(clone, host);
  switch (clone.state) {
    case 'queued':
    case 'running':
    case 'cancelling': {
      // Past the point of no return the worker ignores the wish, so it is not shown either.
      const cancels = cancelRequested && !isPublished(clone);
      const state = cancels ? 'cancelling' : clone.state;
      if (host?.online === true) return { ...clone, state };
      return { ...clone, state, contact: 'lost', lostSince: host?.lastSeenAt ?? clone.startedAt };
    }
    case 'succeeded':
    case 'failed':
    case 'cancelled':
      return waitsTo === null
        ? clone
        : { ...clone, waitingFor: waitsForHost(clone, host, waitsTo) };
  }
}

function waitsForHost({ host: name }: Clone, host: KnownHost | undefined, waitsTo: string): string {
  const since =
    host === undefined || host.online ? '' : `, which is offline since ${host.lastSeenAt},`;
  return `host ${name}${since} ${waitsTo}`;
}

/** The same for a clone that was written just now. */
export function presentQueued(clone: Clone, host: KnownHost | undefined): Clone {
  return { ...clone, waitingFor: reasonToWait(clone, host) };
}

function reasonToWait(clone: Clone, host: KnownHost | undefined): string | null {
  if (host === undefined) return `no worker of host ${clone.host} has registered`;
  if (!host.online) return `host ${clone.host} is offline since ${host.lastSeenAt}`;
  const { concurrency, runningClones } = host.facts;
  if (runningClones.length < concurrency) return null;
  return `${String(runningClones.length)} of ${String(concurrency)} clones run on host ${clone.host}`;
}

/** Every directory that the clone names as one to be written. */
export function directoriesOf(
  target: Pick<CloneSpec['target'], 'dataDirectory'> & Partial<CloneSpec['target']>,
): readonly string[] {
  const { dataDirectory, walDirectory, temporaryWalDirectory, tablespaces = {} } = target;
  return [dataDirectory, walDirectory, temporaryWalDirectory, ...Object.values(tablespaces)].filter(
    (directory) => typeof directory === 'string',
  );
}

export function notFound(id: string): CloneError {
  return new CloneError('NOT_FOUND', `there is no clone ${id}`, {
    hint: 'List the clones to see which there are; ended ones are forgotten after some time.',
  });
}

/** Differs whenever anything in the clone does: an entity tag. */
export function versionOf(clone: Clone): string {
  return createHash('sha256').update(JSON.stringify(clone)).digest('base64url').slice(0, 22);
}
