/** Ends clones that wait: no worker has them, so that whichever API sees it first does. */
import { CloneError, nextState, recordError } from '@pgcloned/contract';
import type { Redis } from 'ioredis';
import { readHost } from './host-registry.ts';
import type { JobQueues } from './job-queues.ts';
import { cloneKey, HOSTS_KEY, openKey } from './keys.ts';
import { ask } from './redis-connection.ts';
import { endQueuedRecord } from './scripts.ts';
import { RecordUnreadableError, readClone, type StoredClone } from './stored-clone.ts';

interface Context {
  readonly redis: Redis;
  readonly queues: JobQueues;
  /** Hears that the job of a clone could not be taken out of the queue: its worker finds it ended. */
  readonly onError: (error: Error) => void;
}

/**
 * Ends those whose deadline has passed while they wait for a slot, or for their worker to come back: nobody else would be
 * there to say that they are too late.
 */
export async function endOverdue(context: Context): Promise<void> {
  const { redis } = context;
  const now = new Date();
  for (const name of await ask(redis.smembers(HOSTS_KEY))) {
    for (const id of await ask(redis.hkeys(openKey(name)))) {
      if ((await ask(redis.hget(cloneKey(id), 'state'))) !== 'queued') continue;
      const stored = await readClone(redis, id, { partly: true }).catch((error: unknown) => {
        if (error instanceof RecordUnreadableError) return undefined;
        throw error;
      });
      const deadline = stored?.clone.spec.deadline ?? null;
      if (stored === undefined || stored.cancelRequested) continue;
      if (deadline === null || Date.parse(deadline) > now.getTime()) continue;
      // Between two attempts its worker notices itself, if it lives.
      const hasWorker = stored.fence.workerId !== '' && (await readHost(redis, name))?.online;
      if (hasWorker !== true)
        await endQueued(context, stored, { event: 'fail', now, error: overdue(deadline) });
    }
  }
}

/** @returns False if the clone is not queued any more, or was changed since it was read. */
export async function endQueued(
  { redis, queues, onError }: Context,
  { clone, marker }: StoredClone,
  {
    event,
    now,
    error = null,
  }: {
    readonly event: 'cancel' | 'fail';
    readonly now: Date;
    readonly error?: CloneError | null;
  },
): Promise<boolean> {
  const state = nextState(clone.state, event);
  if (state === null) return false;
  const ended = await endQueuedRecord(redis, {
    id: clone.id,
    host: clone.host,
    record: JSON.stringify({
      ...clone,
      state,
      waitingFor: null,
      endedAt: now.toISOString(),
      error: error && recordError(error),
    }),
    state,
    endedAtMs: now.getTime(),
    directories: [],
    hasFiles: false,
    marker,
  });
  if (ended) await queues.removeClone(clone).catch(onError);
  return ended;
}

function overdue(deadline: string): CloneError {
  return new CloneError('DEADLINE_EXCEEDED', 'the deadline passed while the clone waited', {
    facts: { deadline },
    hint: 'See what its host is busy with, or why it is away, and ask for a later deadline.',
  });
}
