/**
 * The life of clones after their end: their servers are started and stopped, their files removed, on request or when their
 * time is over, and their records say what is there.
 *
 * Whether a server runs is told by looking, every few seconds: it may have been started, stopped or killed by anybody, also
 * while no worker ran. What is to happen is in the journal before it happens: a removal that was begun is brought to its end
 * by the next worker. A wish lies in Redis until it is carried out, and is found there by whoever comes too late for its
 * wake-up call. Nothing goes because its time is over before Redis was asked for such a wish: with Redis away it stays.
 *
 * One step at a time for each clone, any number of clones at once; locks keep all of it from a directory that a clone is
 * being made in.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import {
  type Clone,
  CloneError,
  expiryAfter,
  hasEnded,
  hasFiles,
  type Instance,
  type InstanceWish,
  type Leftover,
  recordError,
  toCloneError,
} from '@pgcloned/contract';
import type {
  ClonePlan,
  GivenWay,
  giveWay,
  InstancePlan,
  keepPort,
  lookAtInstance,
  measureInstance,
  removeInstance,
  settleInstance,
  startInstance,
  stopInstance,
} from '@pgcloned/engine';
import { isDiskFull, unlessAborted } from '@pgcloned/process';
import type { HostQueue } from '@pgcloned/queue';
import type { Logger } from 'pino';
import { type HostConfiguration, hostPolicy, planClone } from './clone-plan.ts';
import { NO_DEATHS, type Run, type RunJournal } from './run-journal.ts';
import { watchSpaces } from './spaces.ts';
import { type SteadyClock, watchClock } from './steady-clock.ts';

/** How late it may be noticed that somebody else has started or stopped a server. */
const LOOK_MS = 5_000;

/** What failed is tried again, but not with every look. */
const RETRY_MS = 30_000;

/** With Redis away nobody can wish for anything, and a clone need not wait for it. */
const WISHES_MS_MAX = 5_000;

const REMOVING = { state: 'removing', port: null, space: null, error: null } as const;

export interface InstanceEngine {
  readonly lookAtInstance: typeof lookAtInstance;
  readonly startInstance: typeof startInstance;
  readonly stopInstance: typeof stopInstance;
  readonly settleInstance: typeof settleInstance;
  readonly removeInstance: typeof removeInstance;
  readonly giveWay: typeof giveWay;
  readonly keepPort: typeof keepPort;
  readonly measureInstance: typeof measureInstance;
}

export interface InstancesContext {
  readonly host: HostConfiguration;
  readonly journal: RunJournal;
  readonly queue: Pick<HostQueue, 'read' | 'wishedInstances' | 'updateEnded' | 'confirm'>;
  readonly engine: InstanceEngine;
  /** Clones in whose place others are being made from the start: as if each had been told to give way. */
  readonly givingWay: readonly string[];
  /** Clones that are being made belong to somebody else. */
  readonly isBeingMade: (id: string) => boolean;
  readonly log: Logger;
}

/** Disposing of it settles when nothing is done to any instance any more. */
export interface Instances extends AsyncDisposable {
  /** The clone has ended, or something is wished for it. */
  readonly attend: (id: string) => void;
  /**
   * A clone is about to be made: what is wished for those that have ended in its directory comes first, since it was asked for
   * before. Settles when that is done, as far as it can be.
   */
  readonly makeRoom: (dataDirectory: string) => Promise<void>;
  /**
   * The clone is about to be made again in its place: its server is stopped, and until `takeBack` its time is not over.
   *
   * @throws {CloneError} What stands against it.
   */
  readonly giveWay: (id: string, o: Parameters<typeof giveWay>[1]) => Promise<GivenWay>;
  /**
   * What was to take its place has ended.
   *
   * @param o.starts Nothing came of it, and its server ran before. Never rejects.
   */
  readonly takeBack: (id: string, o: { readonly starts: boolean }) => Promise<void>;
  /** Redis has lost everything: it hears again of all clones that have files here. */
  readonly tellAgain: () => void;
  readonly runsWithFiles: () => readonly Run[];
}

/** Looks after all clones that have ended on this host, now and from now on. */
export async function watchInstances(context: InstancesContext): Promise<Instances> {
  const { journal, queue, engine, log } = context;
  const stopping = new AbortController();
  const { signal } = stopping;
  const runs = new Map<string, Run>();
  const wished = new Set<string>();
  const retryAtMs = new Map<string, number>();
  const givingWay = new Set(context.givingWay);
  /** What Redis has to be told of as if it were new. */
  const lost = new Set<string>();
  const troubles = new Map<string, string>();
  const clock = watchClock();
  const busy = new Map<string, { again: boolean; readonly done: Promise<void> }>();

  /** Redis may be away for as long as it likes; the end of the worker does not wait for it. */
  const patiently = async <Value>(work: Promise<Value>): Promise<Value> =>
    await unlessAborted(work, signal);

  const keep = async (run: Run): Promise<void> => {
    await journal.write(run);
    runs.set(run.clone.id, run);
  };
  const say = async (run: Run, done: InstanceWish | null): Promise<void> => {
    const { clone, workerId } = run;
    const fence = { attempt: clone.attempt, workerId };
    if (lost.has(clone.id)) {
      await patiently(queue.confirm(clone, fence));
      lost.delete(clone.id);
    }
    const outcome = await patiently(queue.updateEnded(clone, fence, { done }));
    if (outcome === 'refused')
      log.warn({ cloneId: clone.id }, 'the record of the clone belongs to somebody else');
    if (!run.reported) await keep({ ...run, reported: true });
  };

  const runOf = async (id: string): Promise<Run | undefined> => {
    const known = runs.get(id) ?? (await journal.read(id));
    if (known !== undefined) return known;
    // This host has lost its journal. Whether the clone is ours is told by the marker in its directory.
    const stored = await patiently(queue.read(id));
    if (stored === undefined) return undefined;
    const { clone, fence } = stored;
    return {
      clone,
      workerId: fence.workerId,
      reported: true,
      filled: [],
      deaths: NO_DEATHS,
      begunFrom: null,
      hasStopped: false,
    };
  };
  const runsWithFiles = (): readonly Run[] =>
    [...runs.values()].filter(({ clone }) => hasFiles(clone.instance));
  const wishFor = async (id: string): Promise<InstanceWish | null> =>
    (await patiently(queue.read(id)))?.wishedInstance ?? null;

  const isOverdue = (id: string, instance: Instance): boolean =>
    !givingWay.has(id) && isOver(instance, clock);

  const step = async (id: string): Promise<void> => {
    const run = await runOf(id);
    if (run === undefined || !hasEnded(run.clone.state)) return;
    runs.set(id, run);
    const isTold = wished.delete(id);
    const mayTry = performance.now() >= (retryAtMs.get(id) ?? 0);
    const isDue = mayTry && isOverdue(id, run.clone.instance);
    // Before it goes, too: somebody may have prolonged it while nobody could tell us.
    const wish = isTold || isDue ? await wishFor(id) : null;
    const next = await carryOut(run, wish, mayTry);
    // A removal that was begun and came to nothing is in the journal by now.
    const kept = runs.get(id) ?? run;
    if (!isDeepStrictEqual(next.clone, kept.clone)) await keep({ ...next, reported: false });
    const last = runs.get(id) ?? next;
    if (isTold || wish !== null || !last.reported || lost.has(id)) await say(last, wish);
  };

  /** @returns The run with what has become of it. */
  const carryOut = async (run: Run, wish: InstanceWish | null, mayTry: boolean): Promise<Run> => {
    const { id, instance: before } = run.clone;
    const withInstance = (instance: Instance): Run => ({
      ...run,
      clone: { ...run.clone, instance },
    });
    const wanted = wish === null ? before : granted(before, wish);
    const isBegun = before.state === 'removing';
    // Of what was removed only the wish may be left, by a worker that died before it could say so.
    const isAsked = wish?.remove === true && before.state !== 'removed';
    if (isAsked && wanted.protected && !isBegun)
      return withInstance({ ...wanted, error: recordError(protectedError()) });
    if (isAsked || (mayTry && (isBegun || isOverdue(id, wanted)))) {
      const going = withInstance(wanted);
      if (isAsked || isBegun || (await isLetGo(going, wish))) return await remove(going, isAsked);
      wished.add(id);
      attend(id);
      return run;
    }
    if (isBegun || before.state === 'removed') return withInstance(wanted);

    const plan = planOf(run);
    let error: CloneError | null = null;
    if (wish?.server !== undefined) {
      const work = wish.server === 'running' ? engine.startInstance : engine.stopInstance;
      error = await tryTo(id, `be ${wish.server}`, async () => {
        await work(plan, signal);
      });
    }
    const seen = await engine.lookAtInstance(plan);
    if (seen.state === 'running') await settle(plan);
    const space = spaces.of(id);
    return withInstance({
      ...wanted,
      ...seen,
      ...(space !== undefined && { space }),
      // What has changed since has made it void.
      ...(seen.state !== before.state && { error: null }),
      ...(error !== null && { error: recordError(error) }),
    });
  };

  /** What stands against it now may not with the next look, and nobody waits for it. */
  const settle = async (plan: InstancePlan): Promise<void> => {
    await engine.settleInstance(plan, signal).catch((error: unknown) => {
      if (!(error instanceof CloneError)) throw error;
      log.debug(
        { cloneId: plan.id, code: error.code },
        `clone cannot be settled: ${error.message}`,
      );
    });
  };

  /**
   * Its time is over. Whoever prolongs or protects it is heard now, or refused from now on: nobody is told that it stays, and
   * sees it go.
   */
  const isLetGo = async ({ clone, workerId }: Run, wish: InstanceWish | null): Promise<boolean> => {
    const fence = { attempt: clone.attempt, workerId };
    const instance: Instance = { ...clone.instance, ...REMOVING };
    const removing = queue.updateEnded({ ...clone, instance }, fence, {
      done: wish,
      unlessWished: true,
    });
    try {
      return (await patiently(removing)) !== 'wished';
    } catch (error) {
      signal.throwIfAborted();
      // A Redis whose disk is full takes no wishes either, and what makes room must not wait until there is some.
      log.warn({ cloneId: clone.id, err: error }, 'the time of a clone ends, and Redis refuses it');
      return isDeepStrictEqual(await wishFor(clone.id), wish);
    }
  };

  const remove = async (run: Run, isAsked: boolean): Promise<Run> => {
    const { clone } = run;
    const plan = planOf(run);
    const isBegun = clone.instance.state === 'removing';
    // What somebody else has taken away is not removed by us: it may have been moved.
    const isThere = isBegun || (await engine.lookAtInstance(plan)).state !== 'absent';
    const removing: Instance = { ...clone.instance, ...REMOVING };
    // The journal first, so that the next worker goes on with it. Redis may hear of it later.
    const begun: Run = { ...run, clone: { ...clone, instance: removing }, reported: false };
    await keep(begun).catch((error: unknown) => {
      if (!isDiskFull(error)) throw error;
      // What makes room must not need any. The next worker would be brought to it by the wish, or the time that is over.
      log.warn({ cloneId: clone.id, err: error }, 'a removal begins without the journal');
      runs.set(clone.id, begun);
    });
    const said = say(runs.get(clone.id) ?? run, null).catch(() => {});
    let leftovers: readonly Leftover[] = [];
    const gone = new Set<string>();
    const error = await tryTo(clone.id, 'be removed', async () => {
      leftovers = await engine.removeInstance(plan, {
        source: await sourceOf(clone, context),
        copiedServer: clone.result?.source.address ?? null,
        onGone: (what) => gone.add(what),
        signal,
      });
    });
    await said;
    if (error === null) {
      return {
        ...run,
        clone: {
          ...clone,
          instance: { ...removing, state: isThere ? 'removed' : 'absent' },
          leftovers: [
            ...clone.leftovers.filter(({ what }) => !gone.has(what)),
            ...leftovers.filter(({ what }) => !clone.leftovers.some((one) => one.what === what)),
          ],
        },
      };
    }
    const seen = await engine.lookAtInstance(plan);
    // Once it cannot be started any more, it goes to its end.
    const goesOn =
      seen.state === 'unfinished' && (isBegun || clone.instance.state !== 'unfinished');
    // Its time is over, but somebody works on its directory, and it goes later; or another clone has taken its place.
    const hasSuccessor = error.code === 'INSTANCE_CHANGED' && error.facts.found !== null;
    const isFault = isAsked || !(error.code === 'TARGET_BUSY' || hasSuccessor);
    const instance: Instance = {
      ...removing,
      ...(goesOn ? {} : seen),
      error: isFault ? recordError(error) : null,
    };
    return { ...run, clone: { ...clone, instance } };
  };

  /** @throws The signal's reason if the worker stops. */
  const tryTo = async (
    id: string,
    what: string,
    work: () => Promise<void>,
  ): Promise<CloneError | null> => {
    try {
      await work();
      retryAtMs.delete(id);
      log.info({ cloneId: id }, `clone was asked to ${what}, and is`);
      return null;
    } catch (error) {
      signal.throwIfAborted();
      retryAtMs.set(id, performance.now() + RETRY_MS);
      const failure = toCloneError(error);
      const { code, message, cause } = failure;
      log.warn(
        { cloneId: id, code, ...(code === 'INTERNAL' && { err: cause }) },
        `clone cannot ${what}: ${message}`,
      );
      return failure;
    }
  };

  const attend = (id: string): void => {
    const current = busy.get(id);
    if (current !== undefined) current.again = true;
    if (current !== undefined || signal.aborted || context.isBeingMade(id)) return;
    const entry = {
      again: false,
      done: step(id)
        .then(
          () => void troubles.delete(id),
          (error: unknown) => {
            // It is looked at every few seconds, and told of once.
            if (signal.aborted || troubles.get(id) === String(error)) return;
            troubles.set(id, String(error));
            log.error({ cloneId: id, err: error }, 'a clone that has ended cannot be looked after');
          },
        )
        .finally(() => {
          busy.delete(id);
          if (entry.again) attend(id);
        }),
    };
    busy.set(id, entry);
  };

  const attendWished = async (): Promise<void> => {
    for (const id of await patiently(queue.wishedInstances())) {
      wished.add(id);
      attend(id);
    }
  };
  const lookAround = async (): Promise<void> => {
    clock.look();
    for (const [id, { clone, reported }] of runs) {
      // Redis may have refused to hear that its files are gone.
      const isToTell = clone.instance.state === 'removed' && !reported;
      if ((mayChange(clone) || isToTell) && !busy.has(id)) attend(id);
    }
    await attendWished();
  };

  for (const run of await journal.list())
    if (hasEnded(run.clone.state) && mayChange(run.clone)) runs.set(run.clone.id, run);
  // Before any clone is made: it could be given the port of one that is stopped.
  for (const run of runsWithFiles()) {
    await engine.keepPort(planOf(run), signal).catch((error: unknown) => {
      log.warn(
        { cloneId: run.clone.id, err: toCloneError(error) },
        'the port of a clone is not kept',
      );
    });
  }
  const spaces = watchSpaces({
    runs: () => runs.values(),
    measure: async (run) => await engine.measureInstance(planOf(run), signal),
    onMeasured: attend,
    log,
    signal,
  });
  const looking = repeat(lookAround, {
    signal,
    onError: (error) => {
      log.warn({ err: error }, 'instances of clones');
    },
  });

  return {
    attend: (id) => {
      wished.add(id);
      attend(id);
    },
    makeRoom: async (dataDirectory) => {
      const waited = delay(WISHES_MS_MAX, undefined, { signal, ref: false });
      // Whatever keeps them from being heard, the clone is not to fail by it.
      await Promise.race([attendWished(), waited]).catch(() => {});
      const isThere = async (id: string) =>
        (runs.get(id) ?? (await journal.read(id)))?.clone.spec.target.dataDirectory ===
        dataDirectory;
      // A step that was told of something more is followed by another one, which is there when it ends.
      for (const seen = new Set<unknown>(); ; ) {
        const next = [...busy].find(([, entry]) => !seen.has(entry));
        if (next === undefined) return;
        const [id, entry] = next;
        seen.add(entry);
        if (await isThere(id)) await entry.done;
      }
    },
    giveWay: async (id, o) => {
      const run = await runOf(id);
      if (run === undefined || !hasEnded(run.clone.state)) {
        throw new CloneError('INSTANCE_MISSING', `this host knows no clone ${id} that has ended`, {
          facts: { clone: id },
          hint: 'Ask for a new clone, with ifExists: replace if something lies in its directory.',
        });
      }
      runs.set(id, run);
      givingWay.add(id);
      const given = await engine.giveWay(planOf(run), o);
      attend(id);
      return given;
    },
    takeBack: async (id, { starts }) => {
      try {
        const run = starts ? (runs.get(id) ?? (await journal.read(id))) : undefined;
        if (run !== undefined)
          await tryTo(id, 'be running again', async () => {
            await engine.startInstance(planOf(run), signal);
          });
      } catch (error) {
        log.warn({ cloneId: id, err: toCloneError(error) }, 'a clone was not started again');
      }
      givingWay.delete(id);
      attend(id);
    },
    tellAgain: () => {
      for (const { clone } of runsWithFiles()) {
        lost.add(clone.id);
        attend(clone.id);
      }
    },
    runsWithFiles,
    [Symbol.asyncDispose]: async () => {
      stopping.abort(
        new CloneError('WORKER_STOPPED', 'the worker was stopped', {
          hint: 'It goes on when the worker is started again.',
        }),
      );
      await looking;
      await spaces.ended;
      await Promise.all([...busy.values()].map(async ({ done }) => await done));
    },
  };

  function planOf({ clone, filled }: Run): InstancePlan {
    return { id: clone.id, spec: clone.spec, host: hostPolicy(context.host), filled };
  }
}

/** What is absent may come back with its filesystem, but not what was removed by us. */
function mayChange({ state, instance }: Clone): boolean {
  return state !== 'cancelled' && instance.state !== 'removed';
}

async function repeat(
  work: () => Promise<void>,
  { signal, onError }: { readonly signal: AbortSignal; readonly onError: (error: unknown) => void },
): Promise<void> {
  while (!signal.aborted) {
    await work().catch((error: unknown) => {
      if (!signal.aborted) onError(error);
    });
    await delay(LOOK_MS, undefined, { signal }).catch(() => {});
  }
}

/** Null if the source has gone from the configuration: what is left there is named. */
async function sourceOf(
  clone: Clone,
  { host, journal }: Pick<InstancesContext, 'host' | 'journal'>,
): Promise<ClonePlan | null> {
  try {
    return await planClone(clone, host, journal);
  } catch (error) {
    if (error instanceof CloneError) return null;
    throw error;
  }
}

function granted(instance: Instance, wish: InstanceWish): Instance {
  const { ttl } = wish;
  return {
    ...instance,
    error: null,
    protected: wish.protected ?? instance.protected,
    ...(ttl !== undefined && { expiresAt: ttl === null ? null : expiryAfter(ttl, Date.now()) }),
  };
}

function isOver(instance: Instance, clock: SteadyClock): boolean {
  const { expiresAt, state } = instance;
  const isThere = state === 'running' || state === 'stopped' || state === 'unfinished';
  return (
    isThere && !instance.protected && expiresAt !== null && clock.isPast(Date.parse(expiresAt))
  );
}

function protectedError(): CloneError {
  return new CloneError('CLONE_PROTECTED', 'the clone is protected', {
    hint: 'Take the protection back first: PATCH the clone with {"protected": false}.',
  });
}
