/**
 * What clones take of their filesystems, measured soon after their end and then now and again: with each write, of theirs or
 * of their source, some of what was shared becomes their own.
 *
 * One clone at a time: the map of every file is read, which takes a second for ten thousand.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Instance } from '@pgcloned/contract';
import { toCloneError } from '@pgcloned/contract';
import type { Logger } from 'pino';
import type { Run } from './run-journal.ts';

/** How soon after its end a clone is measured. */
const LOOK_MS = 2_000;

const AGE_MS_MAX = 600_000;

const hasFiles = ({ clone: { instance } }: Run) =>
  instance.state === 'running' || instance.state === 'stopped';

type Space = Instance['space'];

export interface Spaces {
  /** Undefined: it was not measured yet. */
  readonly of: (id: string) => Space | undefined;
  /** Settles when nothing is measured any more. */
  readonly ended: Promise<void>;
}

/**
 * @param o.runs Those that have ended.
 * @param o.onMeasured What `of` answers has changed.
 */
export function watchSpaces(o: {
  readonly runs: () => Iterable<Run>;
  readonly measure: (run: Run) => Promise<Space>;
  readonly onMeasured: (id: string) => void;
  readonly log: Logger;
  readonly signal: AbortSignal;
}): Spaces {
  const { signal } = o;
  const measured = new Map<string, { readonly space: Space; readonly atMs: number }>();

  const measureOne = async (run: Run): Promise<void> => {
    const { id } = run.clone;
    if (!hasFiles(run)) return;
    const { atMs = Number.NEGATIVE_INFINITY } = measured.get(id) ?? {};
    if (performance.now() - atMs < AGE_MS_MAX) return;
    try {
      measured.set(id, { space: await o.measure(run), atMs: performance.now() });
      o.onMeasured(id);
    } catch (error) {
      if (signal.aborted) return;
      measured.set(id, { space: null, atMs: performance.now() });
      o.log.warn({ cloneId: id, err: toCloneError(error) }, 'space of a clone');
    }
  };
  const watch = async (): Promise<void> => {
    while (!signal.aborted) {
      const runs = [...o.runs()];
      for (const run of runs) {
        if (signal.aborted) return;
        await measureOne(run);
      }
      // Of what has no files any more there is nothing to tell.
      const withFiles = new Set(runs.filter(hasFiles).map(({ clone }) => clone.id));
      for (const id of measured.keys()) if (!withFiles.has(id)) measured.delete(id);
      await delay(LOOK_MS, undefined, { signal }).catch(() => {});
    }
  };
  return { of: (id) => measured.get(id)?.space, ended: watch() };
}
