/**
 * The truth of a run: one file per clone in the state directory, written durably when it starts, at each phase and when
 * it ends.
 *
 * Redis may be away, empty or old; this says what this host has done. A file whose record has not ended, found at the
 * start of a worker, belongs to a run that was interrupted. Ended ones stay for a while, so that a job that is given out
 * once more finds that it was done, and those whose files are still there for as long as they are: it is from here that the
 * worker knows when a clone goes and what it consists of.
 */
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Clone, hasEnded, hasFiles } from '@pgcloned/contract';
import type { FilledDirectory, SourceRole } from '@pgcloned/engine';
import { codeOf, writeDurably } from '@pgcloned/process';

/** BullMQ gives a job out again within minutes; a Redis that was restored from a backup may do so after days. */
const ENDED_KEPT_MS = 30 * 86_400_000;
const ENDED_KEPT_MAX = 1_000;

const SUFFIX = '.json';

export interface Run {
  readonly clone: Clone;
  /** The instance of the worker that owns the record: with the attempt, its fence. */
  readonly workerId: string;
  /** Whether Redis has taken the ended record, or refused it for good. */
  readonly reported: boolean;
  /** What the clone has begun to fill: nobody else knows it when its worker is dead. */
  readonly filled: readonly FilledDirectory[];
  readonly deaths: Deaths;
  /** For the attempts of the next worker; null: no attempt has got to know its source. */
  readonly begunFrom: SourceRole | null;
  /** Whether the server of the clone that it resets was stopped for it, and is to run again if nothing comes of it. */
  readonly hasStopped: boolean;
}

/** How often its worker died in the middle of it, since it last got further. */
interface Deaths {
  readonly count: number;
  /** What was missing when a copy began, where least was; null: none began. */
  readonly leastMissingBytes: number | null;
}

export const NO_DEATHS: Deaths = { count: 0, leastMissingBytes: null };

export interface RunJournal {
  /** Writes of one clone follow each other; the caller sees to that. */
  readonly write: (run: Run) => Promise<void>;
  /** Undefined: this host has never begun it, or long ago. */
  readonly read: (id: string) => Promise<Run | undefined>;
  readonly list: () => Promise<readonly Run[]>;
  /** Removes ended runs without files that are too old or too many. */
  readonly prune: () => Promise<void>;
}

/** @param o.onUnreadable Hears of a file that is no run; it is left alone. */
export async function openRunJournal(o: {
  readonly directory: string;
  readonly onUnreadable: (path: string, cause: unknown) => void;
}): Promise<RunJournal> {
  await mkdir(o.directory, { recursive: true, mode: 0o700 });
  const pathOf = (id: string) => join(o.directory, `${id}${SUFFIX}`);

  const read = async (id: string): Promise<Run | undefined> => {
    try {
      return parseRun(await readFile(pathOf(id), 'utf8'));
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') o.onUnreadable(pathOf(id), error);
      return undefined;
    }
  };
  const list = async (): Promise<readonly Run[]> => {
    const names = (await readdir(o.directory)).filter((name) => name.endsWith(SUFFIX));
    const runs: Run[] = [];
    for (const name of names.toSorted()) {
      const run = await read(name.slice(0, -SUFFIX.length));
      if (run !== undefined) runs.push(run);
    }
    return runs;
  };
  return {
    read,
    list,
    write: async (run) => {
      await writeDurably(pathOf(run.clone.id), JSON.stringify(run));
    },
    prune: async () => {
      const ended = (await list())
        .filter(
          ({ clone, reported }) => reported && hasEnded(clone.state) && !hasFiles(clone.instance),
        )
        .toSorted((one, other) => endedAt(other) - endedAt(one));
      for (const [index, run] of ended.entries()) {
        if (index < ENDED_KEPT_MAX && Date.now() - endedAt(run) < ENDED_KEPT_MS) continue;
        await rm(pathOf(run.clone.id), { force: true });
      }
    },
  };
}

function parseRun(text: string): Run {
  const run = JSON.parse(text) as Partial<Run>;
  return {
    clone: Clone.parse(run.clone),
    workerId: String(run.workerId),
    reported: run.reported === true,
    filled: run.filled ?? [],
    deaths: run.deaths ?? NO_DEATHS,
    begunFrom: run.begunFrom ?? null,
    hasStopped: run.hasStopped === true,
  };
}

function endedAt({ clone }: Run): number {
  return Date.parse(clone.endedAt ?? clone.createdAt);
}
