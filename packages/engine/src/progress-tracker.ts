/**
 * Turns what the engine says into the `progress` of the record: sums, rates, an estimate of the rest.
 *
 * A rate is that of the last seconds, so that it follows a change of speed and does not jump with every batch.
 */
import { noProgress, type PhaseName, type Progress } from '@pgcloned/contract';
import type { CloneObserver } from './observer.ts';

/** Long enough to span several batches, short enough to show a stall. */
const RATE_WINDOW_MS = 5_000;

type Tracked = Pick<
  CloneObserver,
  | 'phaseStarted'
  | 'phaseEnded'
  | 'interrupted'
  | 'copyPlanned'
  | 'workersChanged'
  | 'kept'
  | 'copied'
  | 'compression'
  | 'sent'
  | 'wal'
  | 'published'
>;

export interface ProgressTracker {
  readonly observer: Tracked;
  readonly snapshot: () => Progress;
  /** The phase that runs, or ran last. */
  readonly phase: () => PhaseName | null;
  readonly isPublished: () => boolean;
}

interface Meter {
  total: number;
  samples: { readonly atMs: number; readonly total: number }[];
}

/** @param before Of an earlier run of the same clone: what it has moved counts, its phases begin anew. */
export function trackProgress(before: Progress = noProgress()): ProgressTracker {
  const progress: Progress = { ...before, phases: noProgress().phases, workers: [] };
  const meter: Meter = { total: before.bytesDone, samples: [] };
  let workers: Meter[] = [];
  let phase: PhaseName | null = null;
  let published = false;
  const timestamp = () => new Date(Date.now()).toISOString();

  const change = (name: PhaseName, fields: Partial<Progress['phases'][number]>) => {
    progress.phases = progress.phases.map((known) =>
      known.name === name ? { ...known, ...fields } : known,
    );
  };
  const copying = () =>
    progress.phases.some(({ name, state }) => name === 'copy-files' && state === 'running');

  return {
    phase: () => phase,
    isPublished: () => published,
    observer: {
      phaseStarted(name) {
        phase = name;
        change(name, { state: 'running', startedAt: timestamp() });
      },
      phaseEnded(name, state) {
        change(name, { state, endedAt: timestamp() });
      },
      interrupted() {
        progress.phases = noProgress().phases;
      },
      copyPlanned(plan) {
        progress.bytesTotal = plan.bytesTotal;
        progress.filesTotal = plan.filesTotal;
        progress.keptBytes = plan.keptBytes;
        progress.filesDone = 0;
        meter.total = 0;
        meter.samples = [];
        workers = Array.from({ length: plan.workers }, newMeter);
      },
      workersChanged(count) {
        workers = Array.from({ length: count }, (_, index) => workers[index] ?? newMeter());
      },
      copied({ worker, bytes, files }) {
        meter.total += bytes;
        progress.filesDone += files;
        const one = worker === null ? undefined : workers[worker];
        if (one !== undefined) one.total += bytes;
      },
      kept(bytes) {
        progress.keptBytes += bytes;
      },
      compression(compression) {
        progress.compression = compression;
      },
      sent(wireBytes) {
        progress.wireBytes += wireBytes;
      },
      wal({ startLsn, receivedLsn }) {
        progress.wal = {
          startLsn: startLsn ?? progress.wal.startLsn,
          receivedLsn: receivedLsn ?? progress.wal.receivedLsn,
        };
      },
      published() {
        published = true;
      },
    },
    snapshot() {
      const atMs = Date.now();
      const bytesPerSecond = copying() ? rate(meter, atMs) : 0;
      // A file that grew between list and transfer would take the sum beyond the total.
      const bytesDone = Math.min(Math.max(0, meter.total), progress.bytesTotal);
      return {
        ...progress,
        bytesDone,
        bytesPerSecond,
        etaSeconds:
          bytesPerSecond > 0 ? Math.ceil((progress.bytesTotal - bytesDone) / bytesPerSecond) : null,
        workers: workers.map((one, index) => ({
          index,
          bytesDone: Math.max(0, one.total),
          bytesPerSecond: copying() ? rate(one, atMs) : 0,
        })),
      };
    },
  };
}

const newMeter = (): Meter => ({ total: 0, samples: [] });

function rate(meter: Meter, atMs: number): number {
  meter.samples.push({ atMs, total: meter.total });
  while ((meter.samples[1]?.atMs ?? atMs) < atMs - RATE_WINDOW_MS) meter.samples.shift();
  const first = meter.samples[0] ?? { atMs, total: meter.total };
  if (first.atMs === atMs) return 0;
  return Math.max(0, Math.round(((meter.total - first.total) * 1000) / (atMs - first.atMs)));
}
