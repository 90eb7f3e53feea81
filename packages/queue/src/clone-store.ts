/**
 * The API's side of the queue: records of clones, and the hosts that make them.
 *
 * The record is the promise, the job only wakes the worker: once the record is written the clone will be made, even if the
 * job could not be added, because the worker of its host looks for queued records without a job. The API writes a record
 * until a worker has claimed it; afterwards only the worker does, and the API leaves wishes. A clone whose deadline passes
 * while it waits, and that has no worker which could say so, is ended by whichever API sees it first.
 *
 * Every method throws `QUEUE_UNAVAILABLE` at once while Redis is away; only an event stream that has begun waits for it.
 */
import { createHash } from 'node:crypto';
import {
  type Clone,
  type CloneChange,
  CloneError,
  type CloneSpec,
  type Host,
  hasEnded,
  type InstanceWish,
  isPublished,
  type LogLine,
  type PreflightReport,
  refuseUnsupported,
  type StreamEvent,
} from '@pgcloned/contract';
import { isWithin } from '@pgcloned/process';
import { openChangeFeed } from './change-feed.ts';
import { type ClonePage, type ListOptions, listClones } from './clone-list.ts';
import { presentHost, readHost, readHosts } from './host-registry.ts';
import { admitForcedForgetting, admitForgetting, admitInstanceWish } from './instance-wish.ts';
import { openJobQueues } from './job-queues.ts';
import { eventsKey, HOSTS_KEY, idempotencyKey, openKey } from './keys.ts';
import { askForPreflight } from './preflight-exchange.ts';
import {
  ask,
  connectFailingFast,
  firstOutcome,
  queueUnavailable,
  reportOutagesOnce,
} from './redis-connection.ts';
import {
  createRecord,
  forgetRecord,
  pruneEnded,
  requestCancel,
  wishForInstance,
  wishForTransfer,
} from './scripts.ts';
import {
  directoriesOf,
  notFound,
  presentClone,
  presentQueued,
  RecordUnreadableError,
  readClone,
  type StoredClone,
  versionOf,
} from './stored-clone.ts';
import { endOverdue, endQueued } from './waiting-clones.ts';
import { logLineOf, watchClone } from './watch-clone.ts';

const DAY_MS = 86_400_000;

/** A caller that repeats a request does so within minutes; a day also covers a night's outage. */
const IDEMPOTENCY_KEEP_MS = DAY_MS;

/** What ended is history. At most some hundred megabytes of it, if every one of them was noisy. */
const ENDED_KEPT_MAX = 2_000;
const ENDED_KEPT_MS = 90 * DAY_MS;

/** A record changes at most a few times between reading and writing it; more is a livelock. */
const WRITE_TRIES_MAX = 10;

/** How late the deadline of a clone that waits may be noticed. */
const OVERDUE_CHECK_MS = 2_000;

/** A host going away is no event of a clone, so those who wait look at it now and then. */
const CONTACT_CHECK_MS = 5_000;

interface Idempotency {
  readonly key: string;
  /** Equal for equal requests. */
  readonly fingerprint: string;
}

type TargetOfInterest = Pick<CloneSpec['target'], 'host' | 'dataDirectory'> &
  Partial<CloneSpec['target']>;

export interface CloneStore extends AsyncDisposable {
  /**
   * Accepts a clone. With a key that is known, the clone that was made with it is answered again (`created: false`).
   *
   * @throws {CloneError} `IDEMPOTENCY_KEY_REUSED` for another request with the same key; `TARGET_BUSY` with the fact
   *   `holder` if a clone of the same host that has not ended names the same directory, or one above or below it;
   *   `RATE_LIMITED` if a thousand of them have not ended.
   */
  readonly create: (
    clone: Clone,
    idempotency?: Idempotency,
  ) => Promise<{ readonly clone: Clone; readonly created: boolean }>;
  /**
   * The same for a clone that takes the place of one that has ended. What is wished for that one meanwhile is either known to
   * `make` or refused.
   *
   * @param make From the old clone as callers see it to the new one, with `resetOf`. Asked again when the old one has changed.
   * @throws {CloneError} As `create`, and `NOT_FOUND`, `NOT_SUPPORTED` if a later version has made the old one.
   */
  readonly reset: (
    id: string,
    make: (old: Clone) => Promise<Clone>,
    idempotency?: Idempotency,
  ) => Promise<{ readonly clone: Clone; readonly created: boolean }>;
  /** The clone that `create` would answer because the same request came before; undefined if it would make one. */
  readonly madeBefore: (idempotency: Idempotency) => Promise<Clone | undefined>;
  /** What a later version has added to the record is left out. */
  readonly get: (id: string) => Promise<Clone | undefined>;
  /** Newest first. @throws {CloneError} `REQUEST_INVALID` if the page token is none of ours. */
  readonly list: (o: ListOptions) => Promise<ClonePage>;
  /**
   * Ends a queued clone at once; asks the worker to end a running one, and wakes it.
   *
   * @throws {CloneError} `NOT_FOUND`, `CLONE_ENDED` unless it was cancelled before, `TOO_LATE_TO_CANCEL`.
   */
  readonly cancel: (id: string) => Promise<Clone>;
  /**
   * Changes how much its transfer may take, for now and for every attempt to come, and wakes its worker.
   *
   * @throws {CloneError} `NOT_FOUND`, `CLONE_ENDED`, `NOT_SUPPORTED` if its method transfers nothing.
   */
  readonly changeTransfer: (
    id: string,
    change: NonNullable<CloneChange['transfer']>,
  ) => Promise<Clone>;
  /**
   * Leaves with a clone what is wished for its instance, beside what was wished before, and wakes its worker. Nothing is
   * left where there is nothing to be done.
   *
   * @throws {CloneError} `NOT_FOUND`, `CLONE_NOT_ENDED`, `CLONE_PROTECTED`, `INSTANCE_MISSING`; `TARGET_BUSY` while another
   *   clone works on the directory of one that is to be started, stopped or removed, and for every change while it is reset.
   */
  readonly changeInstance: (id: string, wish: InstanceWish) => Promise<Clone>;
  /**
   * Removes the record. One that is forced away while its worker lives comes back with the worker's next word. One that
   * cannot be read, as of another version, goes only by force.
   *
   * @throws {CloneError} `NOT_FOUND`, `CLONE_PROTECTED`, also by force as long as its host is online; unless forced
   *   `CLONE_NOT_ENDED`, `CLONE_EXPIRES`.
   */
  readonly forget: (id: string, o: { readonly force: boolean }) => Promise<void>;
  /**
   * The whole record, then every log line and change after `lastEventId`, and `end` when it has ended. Ends without `end`
   * when the clone is forgotten or `signal` aborts.
   *
   * @throws {CloneError} `NOT_FOUND` or `QUEUE_UNAVAILABLE`, before the first event only.
   */
  readonly watch: (
    id: string,
    o: { readonly lastEventId: string | null; readonly signal: AbortSignal },
  ) => AsyncIterable<StreamEvent>;
  /**
   * Answers as soon as the version of the clone ({@link versionOf}) is another than `version`, or after `timeoutMs`.
   *
   * @throws {CloneError} `NOT_FOUND`.
   */
  readonly waitForChange: (
    id: string,
    o: { readonly version: string; readonly timeoutMs: number; readonly signal: AbortSignal },
  ) => Promise<Clone>;
  readonly logs: (id: string) => Promise<readonly LogLine[]>;
  readonly hosts: () => Promise<readonly Host[]>;
  readonly host: (name: string) => Promise<Host | undefined>;
  /** The clone that would make `create` throw `TARGET_BUSY`. */
  readonly holderOf: (target: TargetOfInterest) => Promise<string | undefined>;
  /**
   * What the worker of the target host finds that stands against a clone.
   *
   * @throws {CloneError} `HOST_UNAVAILABLE`, and what the worker answers in place of a report.
   */
  readonly preflight: (
    spec: CloneSpec,
    o: { readonly signal: AbortSignal },
  ) => Promise<PreflightReport>;
  readonly ping: () => Promise<void>;
}

/**
 * Settles whether or not Redis is there.
 *
 * @throws {CloneError} `CONFIGURATION_INVALID` if the URL cannot be read.
 */
export async function openCloneStore(options: {
  readonly redisUrl: string;
  /** Hears of each outage once, and of what nobody is there to be told. */
  readonly onError: (error: Error) => void;
}): Promise<CloneStore> {
  const closing = new AbortController();
  const { onError, onReady } = reportOutagesOnce(options.redisUrl, options.onError);
  const connection = { redisUrl: options.redisUrl, closing: closing.signal, onError };
  const redis = connectFailingFast(connection);
  redis.on('ready', onReady);
  const feed = openChangeFeed(connection);
  const queues = openJobQueues({ redis, onError });
  await firstOutcome(redis);
  const waiting = { redis, queues, onError };
  let looking = false;
  const lookout = setInterval(() => {
    if (looking || redis.status !== 'ready') return;
    looking = true;
    endOverdue(waiting)
      .catch(onError)
      .finally(() => {
        looking = false;
      });
  }, OVERDUE_CHECK_MS);

  const present = async (stored: StoredClone): Promise<Clone> =>
    presentClone(
      stored,
      hasEnded(stored.clone.state) && stored.wishedInstance === null
        ? undefined
        : await readHost(redis, stored.clone.host),
    );
  const find = async (id: string): Promise<StoredClone> => {
    const stored = await readClone(redis, id, { partly: true });
    if (stored === undefined) throw notFound(id);
    return stored;
  };

  const create = async (
    clone: Clone,
    {
      idempotency,
      reset,
    }: {
      readonly idempotency: Idempotency | undefined;
      readonly reset: Parameters<typeof createRecord>[1]['reset'];
    },
  ): Promise<{ readonly clone: Clone; readonly created: boolean } | 'changed'> => {
    // Asked before, so that nothing can fail between the promise and the answer.
    const host = await readHost(redis, clone.host);
    const { outcome, id } = await createRecord(redis, {
      id: clone.id,
      host: clone.host,
      record: JSON.stringify(clone),
      directories: directoriesOf(clone.spec.target),
      idempotency: {
        key: idempotencyKey(idempotency === undefined ? 'none' : sha256(idempotency.key)),
        fingerprint: idempotency?.fingerprint ?? '',
        keepMs: IDEMPOTENCY_KEEP_MS,
      },
      reset,
    });
    switch (outcome) {
      case 'changed':
        return outcome;
      case 'busy':
        throw targetBusy(id);
      case 'full':
        throw new CloneError('RATE_LIMITED', `too many clones wait for host ${clone.host}`, {
          facts: { host: clone.host },
          hint: 'Wait until some of them have ended, or cancel those that nobody needs.',
        });
      case 'reused':
        throw new CloneError('IDEMPOTENCY_KEY_REUSED', 'the key came with another request before', {
          facts: { clone: id },
          hint: 'Use a new key for every request that differs.',
        });
      case 'known':
        return { clone: await present(await find(id)), created: false };
      case 'created':
        await queues.addClone(clone).catch(onError);
        pruneEnded(redis, {
          endedBeforeMs: Date.now() - ENDED_KEPT_MS,
          countMax: ENDED_KEPT_MAX,
        }).catch(onError);
        return { clone: presentQueued(clone, host), created: true };
    }
  };

  const store: CloneStore = {
    create: async (clone, idempotency) => {
      const made = await create(clone, { idempotency, reset: null });
      if (made === 'changed') throw new Error('it takes the place of none that could change');
      return made;
    },

    reset: async (id, make, idempotency) =>
      await untilWritten(id, async () => {
        const stored = await find(id);
        if (stored.isPartial) throw ofLaterVersion(id);
        const clone = await make(await present(stored));
        return await create(clone, { idempotency, reset: { id, marker: stored.marker } });
      }),

    madeBefore: async ({ key, fingerprint }) => {
      const [id, known] = await ask(redis.hmget(idempotencyKey(sha256(key)), 'id', 'fingerprint'));
      return typeof id === 'string' && known === fingerprint ? await store.get(id) : undefined;
    },

    get: async (id) => {
      const stored = await readClone(redis, id, { partly: true });
      return stored && (await present(stored));
    },

    list: async (o) => await listClones(o, { redis, onUnreadable: onError }),

    cancel: async (id) => {
      return await untilWritten(id, async () =>
        (await cancelAsItIs(await find(id))) ? await present(await find(id)) : 'changed',
      );
    },

    changeTransfer: async (id, change) =>
      await untilWritten(id, async () => {
        const { clone, fence, wishedTransfer } = await find(id);
        if (hasEnded(clone.state)) {
          throw new CloneError('CLONE_ENDED', 'the clone has ended', {
            facts: { state: clone.state },
            hint: 'Nothing is left to be transferred.',
          });
        }
        const now = clone.spec.transfer;
        const { workers = now.workers, maxRate = now.maxRate } = change;
        refuseUnsupported({ ...clone.spec, transfer: { ...now, workers, maxRate } });
        const isWished = await wishForTransfer(redis, {
          id,
          before: wishedTransfer,
          wish: { workers, maxRate },
        });
        if (!isWished) return 'changed';
        // One that no worker has taken yet is taken as it is then.
        if (fence.workerId !== '') await queues.wakeForWish(clone).catch(onError);
        return await present(await find(id));
      }),

    changeInstance: async (id, change) =>
      await untilWritten(id, async () => {
        const stored = await find(id);
        const clone = await present(stored);
        // No worker has ever had it: nothing of it lies anywhere.
        const isUntouched = hasEnded(clone.state) && stored.fence.workerId === '';
        if (!admitInstanceWish(clone, change) || (change.remove === true && isUntouched))
          return clone;
        const holder = await store.holderOf(clone.spec.target);
        if (holder !== undefined && holder !== id) {
          if (change.server !== undefined || change.remove === true) throw targetBusy(holder);
          // It takes over what was wished for until it was asked for.
          if ((await store.get(holder))?.resetOf === id) throw beingReset(holder);
        }
        const { host } = clone;
        const wish = { ...stored.wishedInstance, ...change };
        if (!(await wishForInstance(redis, { id, host, marker: stored.marker, wish })))
          return 'changed';
        await queues.wakeForInstance(clone).catch(onError);
        return await present(await find(id));
      }),

    forget: async (id, { force }) => {
      await untilWritten(id, async () => {
        const stored = await find(id).catch((error: unknown) => {
          if (force && error instanceof RecordUnreadableError) return null;
          throw error;
        });
        if (stored === null) {
          await forgetUnreadable(id);
          return 'forgotten';
        }
        const { clone, marker } = stored;
        const { host } = clone;
        if (force) {
          const isOnline = (await readHost(redis, host))?.online === true;
          admitForcedForgetting(await present(stored), { isOnline });
        } else {
          if (!hasEnded(clone.state)) {
            throw new CloneError('CLONE_NOT_ENDED', 'the clone has not ended', {
              facts: { state: clone.state },
              hint: 'Cancel it first, and delete it once it has ended.',
            });
          }
          admitForgetting(await present(stored));
        }
        if (!(await forgetRecord(redis, { id, host, marker }))) return 'changed';
        if (!hasEnded(clone.state)) await queues.removeClone(clone).catch(onError);
        return 'forgotten';
      });
    },

    watch: (id, { lastEventId, signal }) =>
      watchClone({
        redis,
        feed,
        id,
        lastEventId,
        signal: AbortSignal.any([signal, closing.signal]),
        read: async () => await store.get(id),
        checkMs: CONTACT_CHECK_MS,
      }),

    waitForChange: async (id, { version, timeoutMs, signal }) => {
      const deadlineMs = performance.now() + timeoutMs;
      await find(id);
      using changes = await feed.watch(id);
      for (;;) {
        const clone = await present(await find(id));
        const leftMs = deadlineMs - performance.now();
        if (versionOf(clone) !== version || leftMs <= 0 || signal.aborted) return clone;
        await changes.next({ timeoutMs: Math.min(leftMs, CONTACT_CHECK_MS), signal });
      }
    },

    logs: async (id) => {
      await find(id);
      const entries = await ask(redis.xrange(eventsKey(id), '-', '+'));
      return entries.map(([, fields]) => logLineOf(fields)).filter((line) => line !== undefined);
    },

    hosts: async () => {
      const hosts = [...(await readHosts(redis)).values()].map(presentHost);
      return hosts.toSorted((one, other) => (one.name < other.name ? -1 : 1));
    },

    host: async (name) => {
      const known = await readHost(redis, name);
      return known && presentHost(known);
    },

    holderOf: async (target) => {
      const wanted = directoriesOf(target);
      for (const [id, theirs] of Object.entries(await ask(redis.hgetall(openKey(target.host))))) {
        if (
          (JSON.parse(theirs) as string[]).some((one) =>
            wanted.some((other) => isWithin(one, other) || isWithin(other, one)),
          )
        )
          return id;
      }
      return undefined;
    },

    preflight: async (spec, { signal }) =>
      await askForPreflight(spec, {
        redis,
        feed,
        queues,
        signal: AbortSignal.any([signal, closing.signal]),
      }),

    ping: async () => {
      await ask(redis.ping());
    },

    [Symbol.asyncDispose]: async () => {
      clearInterval(lookout);
      closing.abort();
      feed[Symbol.dispose]();
      await queues[Symbol.asyncDispose]();
      redis.disconnect();
    },
  };
  return store;

  /** @returns False if the clone was no longer what `stored` says. */
  async function cancelAsItIs(stored: StoredClone): Promise<boolean> {
    const { clone } = stored;
    const now = new Date();
    switch (clone.state) {
      case 'cancelled':
        return true;
      case 'succeeded':
      case 'failed':
        throw new CloneError('CLONE_ENDED', 'the clone has ended', {
          facts: { state: clone.state },
          hint: 'Nothing is left to be cancelled.',
        });
      case 'queued':
        // Between two attempts a clone waits with its worker, which has things to tidy up.
        return await (stored.fence.workerId === ''
          ? endQueued(waiting, stored, { event: 'cancel', now })
          : wishForCancel());
      case 'running':
      case 'cancelling':
        if (isPublished(clone)) {
          throw new CloneError('TOO_LATE_TO_CANCEL', 'the clone is published already', {
            facts: { dataDirectory: clone.spec.target.dataDirectory },
            hint: 'Wait until it has ended, and delete it then if it is not wanted.',
          });
        }
        return await wishForCancel();
    }

    async function wishForCancel(): Promise<boolean> {
      const requested = await requestCancel(redis, clone.id, now.toISOString());
      if (requested) await queues.wakeForWish(clone).catch(onError);
      return requested;
    }
  }

  /** It does not say whose it is, and may hold a target of any host. */
  async function forgetUnreadable(id: string): Promise<void> {
    for (const host of await ask(redis.smembers(HOSTS_KEY))) {
      await forgetRecord(redis, { id, host, marker: null });
    }
  }
}

/** Tries anew as long as somebody has changed the record between reading and writing it. */
async function untilWritten<Result>(
  id: string,
  tryOnce: () => Promise<Result | 'changed'>,
): Promise<Result> {
  for (let tries = 0; tries < WRITE_TRIES_MAX; tries++) {
    const result = await tryOnce();
    if (result !== 'changed') return result;
  }
  throw queueUnavailable(`the record of clone ${id} changes all the time`);
}

function ofLaterVersion(id: string): CloneError {
  return new CloneError('NOT_SUPPORTED', 'the clone was made by a later version', {
    facts: { clone: id },
    hint: 'Ask an API of that version: this one does not know all that was asked for.',
  });
}

function beingReset(holder: string): CloneError {
  return new CloneError('TARGET_BUSY', 'another clone takes the place of this one', {
    facts: { holder },
    hint: `Protect clone ${holder} instead (PATCH), and extend it once it has ended; or cancel it.`,
  });
}

/** What `CloneStore.create` refuses with. */
export function targetBusy(holder: string): CloneError {
  return new CloneError('TARGET_BUSY', 'another clone works on this target', {
    facts: { holder },
    hint: `Wait until clone ${holder} has ended, cancel it, or choose another directory.`,
  });
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
