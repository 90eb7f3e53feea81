/**
 * A clone from start to end: the eight phases in their order, and what holds around all of them.
 *
 * Promises: when `runClone` settles, nothing of it runs any more on either side (a replica that it started excepted);
 * the source is as it was; the target holds either a complete clone or something that cannot be started and that the
 * next clone into it may use. What could not be undone is reported as a leftover. See ARCHITECTURE.md for the order and
 * its reasons.
 */
import { setTimeout as delay } from 'node:timers/promises';
import {
  CloneError,
  type CloneResult,
  formatServer,
  type Leftover,
  type PhaseName,
  refuseForbiddenSettings,
  refuseUnfitSource,
  refuseUnsupported,
  toCloneError,
} from '@pgcloned/contract';
import { withCleanup } from './cleanup.ts';
import type { CloneRun } from './clone-run.ts';
import type { CloneObserver } from './observer.ts';
import { collectWal } from './phases/collect-wal.ts';
import { copyFiles } from './phases/copy-files.ts';
import { preflight } from './phases/preflight.ts';
import { publish } from './phases/publish.ts';
import { reflinkFiles } from './phases/reflink-files.ts';
import { startBackup } from './phases/start-backup.ts';
import { startReplica } from './phases/start-replica.ts';
import { stopBackup } from './phases/stop-backup.ts';
import { streamWal } from './phases/stream-wal.ts';
import type { ClonePlan } from './plan.ts';
import { startRetryBudget } from './retry-budget.ts';
import { explainBroken, explainFilesystemFailure } from './target/filesystem-failure.ts';
import { resolveReal } from './target/guard.ts';
import { makeLockSet } from './target/locks.ts';
import { isPublished } from './target/marker.ts';
import { reservePort } from './target/ports.ts';
import { controlTransfer, type TransferControl } from './transfer-control.ts';

export interface RunCloneOptions {
  readonly observer: CloneObserver;
  /** The reason of an abort must be a `CloneError`: it becomes the error of the clone. */
  readonly signal: AbortSignal;
  /** Changes workers and rate while it runs, over all attempts; without it those of the plan hold. */
  readonly transferControl?: TransferControl;
}

/**
 * Makes the clone of `plan`, in several attempts if something breaks off that may pass: each builds upon what the one
 * before has copied.
 *
 * @throws {CloneError} With `phase` set to the phase that failed.
 */
export async function runClone(
  plan: ClonePlan,
  { observer, signal, transferControl = controlTransfer(plan.spec.transfer) }: RunCloneOptions,
): Promise<CloneResult> {
  const startedAtMs = Date.now();
  const deadline = new AbortController();
  using _ = abortAtDeadline(plan.spec.deadline, deadline);
  const wholeSignal = AbortSignal.any([signal, deadline.signal]);
  const locks = makeLockSet(plan.id);
  const port = reservePort(plan.id);
  const filled = new Set<string>();
  const warnings = new Set<string>();
  let wireBytes = 0;
  return await withCleanup(async (lasting) => {
    lasting.always({
      what: `locks on ${plan.spec.target.dataDirectory}`,
      remedy: 'kill the process that holds them: fuser /run/lock/pgcloned-*',
      undo: async () => {
        await locks[Symbol.asyncDispose]();
      },
    });
    lasting.always({
      what: `the port of ${plan.spec.target.dataDirectory}`,
      remedy: 'none is needed: it is free again when this process has ended',
      undo: async () => {
        await port[Symbol.asyncDispose]();
      },
    });
    const budget = startRetryBudget({
      isResumed: plan.attempt > 1,
      begunFrom: plan.begunFrom,
      picksAgain: plan.source.hosts !== null,
    });
    for (let attempt = plan.attempt; ; attempt += 1) {
      try {
        const result = await runAttempt(
          { ...plan, attempt, begunFrom: budget.begunFrom() },
          {
            observer: budget.watch(observer),
            signal: wholeSignal,
            transferControl,
            lasting,
            locks,
            port,
            filled,
            warn: (text) => {
              warnings.add(text);
              observer.warning(text);
            },
            sent: (bytes) => {
              wireBytes += bytes;
              observer.sent(bytes);
            },
          },
        );
        return {
          ...result,
          wireBytes,
          durationMs: Date.now() - startedAtMs,
          warnings: [...warnings],
        };
      } catch (error) {
        const failure = toCloneError(error);
        // Bad input shows in the first preflight: it gets its answer at once. What was reached before it was lost is none.
        const isFirstLook =
          failure.phase === 'preflight' &&
          failure.code !== 'SOURCE_LOST' &&
          filled.size === 0 &&
          attempt === 1;
        const pauseMs = isFirstLook ? null : budget.pauseAfter(failure);
        if (pauseMs === null) throw failure;
        observer.interrupted({ attempt: attempt + 1, error: failure, pauseMs });
        await pause(pauseMs, wholeSignal);
      }
    }
  }, reportLeftovers(observer));
}

type AttemptOptions = Pick<
  CloneRun,
  | 'observer'
  | 'signal'
  | 'transferControl'
  | 'lasting'
  | 'locks'
  | 'port'
  | 'filled'
  | 'warn'
  | 'sent'
>;

async function runAttempt(
  plan: ClonePlan,
  options: AttemptOptions,
): Promise<Omit<CloneResult, 'wireBytes' | 'durationMs' | 'warnings'>> {
  const { observer } = options;
  const loss = new AbortController();
  const signal = AbortSignal.any([options.signal, loss.signal]);
  let current: PhaseName = 'preflight';
  try {
    return await withCleanup(async (cleanup) => {
      const run: CloneRun = {
        ...options,
        plan,
        signal,
        cleanup,
        looksOnly: false,
        name: `pgcloned_${plan.id}_${String(plan.attempt)}`,
        watch: (lost) => watch(lost, loss),
      };
      const phase = async <Result>(
        name: PhaseName,
        work: () => Promise<Result>,
      ): Promise<Result> => {
        current = name;
        observer.phaseStarted(name);
        // After the publication the last phase ends it in order: it names what was replaced.
        if (name !== 'start-replica') signal.throwIfAborted();
        const result = await work();
        observer.phaseEnded(name, 'done');
        return result;
      };

      refuseUnsupported(plan.spec);
      refuseUnfitSource(plan.spec, plan.source);
      refuseForbiddenSettings(plan.spec.replica.settings, plan.host.allowedSettings);

      const ready = await phase('preflight', () => preflight(run));
      const role = ready.facts.inRecovery ? 'standby' : 'primary';
      observer.begunFrom(role);
      const pinned = await phase('stream-wal', () => streamWal(run, ready));
      const { stream, ...start } = await phase('start-backup', () =>
        startBackup(run, ready, pinned),
      );
      const copyBy = { rsync: copyFiles, reflink: reflinkFiles }[plan.spec.method];
      const copy = await phase('copy-files', () => copyBy(run, ready, start));
      const stop = await phase('stop-backup', () => stopBackup(run, ready, start, copy));
      await phase('collect-wal', () => collectWal(run, ready, { stream, start, stop }));
      const published = await phase('publish', () =>
        publish(run, ready, { stream, start, copy, stop }),
      );
      // A hold of hours must not hang on a connection that nobody needs any more.
      if (ready.settings.tunnelDirectory === null) await ready.host.close();
      const { boot, connectionString } = await phase('start-replica', () =>
        startReplica(run, ready, { stream, start, stop, copy, published }),
      );

      return {
        dataDirectory: ready.data.final,
        connectionString,
        source: { address: formatServer(ready.settings), role },
        systemIdentifier: ready.facts.systemIdentifier,
        timeline: start.timeline,
        startLsn: start.startLsn,
        stopLsn: stop.stopLsn,
        bytes: copy.bytes,
        files: copy.files,
        keptBytes: copy.keptBytes,
        compression: copy.compression,
        verification: { transfer: copy.transfer, wal: 'passed', pages: copy.pages, boot },
      };
    }, reportLeftovers(observer));
  } catch (error) {
    observer.phaseEnded(current, 'failed');
    // Whatever an abort broke off complains in its own words; the reason is what counts.
    const failure = toCloneError(
      signal.aborted
        ? signal.reason
        : // What failed stays the reason, also where the target cannot be looked at.
          await explain(error, plan, options.filled).catch(
            () => explainBroken(error, { next: 'clone again' }) ?? error,
          ),
    );
    failure.phase = current;
    throw failure;
  }
}

async function explain(
  error: unknown,
  { id, spec }: ClonePlan,
  filled: ReadonlySet<string>,
): Promise<unknown> {
  const { real } = await resolveReal(spec.target.dataDirectory);
  return await explainFilesystemFailure(error, {
    directories: [real, ...filled],
    next: (await isPublished(real, id))
      ? `start the clone in ${real}, which is complete, or clone again`
      : 'clone again',
  });
}

function reportLeftovers(observer: CloneObserver) {
  return ({ what, remedy }: Leftover, error: unknown): void => {
    observer.log('warn', 'a cleanup step failed', { what, reason: String(error) });
    observer.leftover({ what, remedy });
  };
}

async function pause(pauseMs: number, signal: AbortSignal): Promise<void> {
  await delay(pauseMs, undefined, { signal }).catch(() => {
    signal.throwIfAborted();
  });
}

function watch(lost: Promise<CloneError>, loss: AbortController): () => void {
  let watching = true;
  void lost.then((error) => {
    if (watching) loss.abort(error);
  });
  return () => {
    watching = false;
  };
}

/** A timer of Node cannot wait longer than 24.8 days; a deadline beyond that is none that we live to see. */
const TIMER_MAX_MS = 2 ** 31 - 1;

function abortAtDeadline(deadline: string | null, loss: AbortController): Disposable {
  if (deadline === null) return { [Symbol.dispose]: () => {} };
  const leftMs = Date.parse(deadline) - Date.now();
  const timer = setTimeout(
    () => {
      loss.abort(
        new CloneError('DEADLINE_EXCEEDED', 'the deadline of the clone has passed', {
          facts: { deadline },
          hint: 'Ask for a later deadline, more workers or a higher rate.',
        }),
      );
    },
    Math.min(Math.max(0, leftMs), TIMER_MAX_MS),
  );
  return {
    [Symbol.dispose]: () => {
      clearTimeout(timer);
    },
  };
}
