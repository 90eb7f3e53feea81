/**
 * A clone from start to end: the eight phases in their order, and what holds around all of them.
 *
 * Promises: when `runClone` settles, nothing of it runs any more on either side (a replica that it started excepted);
 * the source is as it was; the target holds either a complete clone or something that cannot be started and that the
 * next clone into it may use. What could not be undone is reported as a leftover. See ARCHITECTURE.md for the order and
 * its reasons, which are those of physics section 0.
 */
import {
  CloneError,
  type CloneResult,
  type PhaseName,
  refuseForbiddenSettings,
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
import { startBackup } from './phases/start-backup.ts';
import { startReplica } from './phases/start-replica.ts';
import { stopBackup } from './phases/stop-backup.ts';
import { streamWal } from './phases/stream-wal.ts';
import type { ClonePlan } from './plan.ts';

export interface RunCloneOptions {
  readonly observer: CloneObserver;
  /** The reason of an abort must be a `CloneError`: it becomes the error of the clone. */
  readonly signal: AbortSignal;
}

/**
 * Makes the clone of `plan`.
 *
 * @throws {CloneError} With `phase` set to the phase that failed.
 */
export async function runClone(
  plan: ClonePlan,
  { observer, signal }: RunCloneOptions,
): Promise<CloneResult> {
  const startedAtMs = Date.now();
  const loss = new AbortController();
  using _ = abortAtDeadline(plan.spec.deadline, loss);
  const warnings: string[] = [];
  let current: PhaseName = 'preflight';
  try {
    return await withCleanup(
      async (cleanup) => {
        const run: CloneRun = {
          plan,
          observer,
          warn: (text) => {
            warnings.push(text);
            observer.warning(text);
          },
          signal: AbortSignal.any([signal, loss.signal]),
          cleanup,
          name: `pgcloned_${plan.id}_${String(plan.attempt)}`,
          watch: (lost) => watch(lost, loss),
        };
        const phase = async <Result>(
          name: PhaseName,
          work: () => Promise<Result>,
        ): Promise<Result> => {
          run.signal.throwIfAborted();
          current = name;
          observer.phaseStarted(name);
          const result = await work();
          observer.phaseEnded(name, 'done');
          return result;
        };

        refuseUnsupported(plan.spec);
        refuseForbiddenSettings(plan.spec.replica.settings, plan.host.allowedSettings);

        const ready = await phase('preflight', () => preflight(run));
        const pinned = await phase('stream-wal', () => streamWal(run, ready));
        const { stream, ...start } = await phase('start-backup', () =>
          startBackup(run, ready, pinned),
        );
        const copy = await phase('copy-files', () => copyFiles(run, ready));
        const stop = await phase('stop-backup', () => stopBackup(run, ready, start, copy));
        await phase('collect-wal', () => collectWal(run, ready, { stream, start, stop }));
        const published = await phase('publish', () =>
          publish(run, ready, { stream, start, copy, stop }),
        );
        await ready.closeSsh();
        await phase('start-replica', () => startReplica(run, ready, { stream, stop, published }));

        return {
          dataDirectory: ready.data.final,
          systemIdentifier: ready.facts.systemIdentifier,
          timeline: start.timeline,
          startLsn: start.startLsn,
          stopLsn: stop.stopLsn,
          bytes: copy.bytes,
          files: copy.files,
          wireBytes: copy.wireBytes,
          keptBytes: copy.keptBytes,
          durationMs: Date.now() - startedAtMs,
          warnings,
          verification: { transfer: 'passed', wal: 'passed', pages: 'skipped', boot: 'skipped' },
        };
      },
      ({ what, remedy }, error) => {
        observer.log('warn', 'a cleanup step failed', { what, reason: String(error) });
        observer.leftover({ what, remedy });
      },
    );
  } catch (error) {
    observer.phaseEnded(current, 'failed');
    const failure = toCloneError(error);
    failure.phase = current;
    throw failure;
  }
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
