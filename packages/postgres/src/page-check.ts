/**
 * Reads files in threads of their own and says which of their pages cannot be right (R8.2).
 *
 * The arithmetic takes as long as reading does, so neither may happen where the event loop is. What a page that is not
 * sound means is for the caller to decide: it may have been read in the middle of a write.
 */
import { Worker } from 'node:worker_threads';
import { CloneError } from '@pgcloned/contract';

/** So much is given to a thread at a time: few messages for small files, and none waits behind many big ones. */
const GROUP_FILES_MAX = 256;
const GROUP_BYTES_MAX = 32 * 1024 ** 2;

export interface PageCheckerOptions {
  /** `block_size` of the cluster. */
  readonly pageBytes: number;
  /** Without it files are only summed up. */
  readonly judgesPages: boolean;
  /** Whether CRC-32C is wanted. */
  readonly sums: boolean;
  readonly threads: number;
}

export interface FileToCheck {
  /** One character per byte, as `latin1` has it: names are in no encoding in particular. */
  readonly path: string;
  /** About how big it is. */
  readonly bytes: number;
  /** The number of its first page in the relation; null: it has no pages. */
  readonly firstBlock: number | null;
}

export interface CheckedFile {
  readonly bytes: number;
  readonly mtimeNs: bigint;
  /** CRC-32C; 0 if it was not asked for. */
  readonly crc: number;
  /** How many pages were judged. */
  readonly pages: number;
  readonly suspects: readonly Suspect[];
}

/** A page whose checksum is not that of its content. */
export interface Suspect {
  /** Its number in the relation. */
  readonly block: number;
  /** When it was last changed, as it says itself. */
  readonly lsn: bigint;
}

export interface PageChecker extends AsyncDisposable {
  /**
   * Checks files in their order; a file that is not there is null.
   *
   * @param priority `now`: what has just arrived and lies in memory; `later`: when nothing of that is left.
   * @throws {CloneError} `TRANSFER_FAILED` if a file cannot be read.
   */
  check(
    files: readonly FileToCheck[],
    priority: 'now' | 'later',
  ): Promise<readonly (CheckedFile | null)[]>;
}

interface Group {
  readonly files: readonly FileToCheck[];
  readonly done: PromiseWithResolvers<readonly (CheckedFile | null)[]>;
}

type Answer =
  | { readonly checked: readonly (CheckedFile | null)[] }
  | { readonly failure: { readonly path: string; readonly reason: string } };

export function openPageChecker(options: PageCheckerOptions): PageChecker {
  const waiting: Record<'now' | 'later', Group[]> = { now: [], later: [] };
  const idle: Worker[] = [];
  const busy = new Map<Worker, Group>();
  const workers: Worker[] = [];
  let failure: Error | null = null;

  const fail = (error: Error) => {
    failure ??= error;
    for (const group of [...busy.values(), ...waiting.now, ...waiting.later])
      group.done.reject(failure);
    busy.clear();
    waiting.now = [];
    waiting.later = [];
  };
  const settle = (worker: Worker, answer: Answer) => {
    const group = busy.get(worker);
    busy.delete(worker);
    idle.push(worker);
    if ('checked' in answer) group?.done.resolve(answer.checked);
    else group?.done.reject(unreadable(answer.failure));
    distribute();
  };
  const start = (): Worker => {
    const worker = new Worker(new URL('./page-check-thread.ts', import.meta.url), {
      workerData: options,
    });
    worker.on('message', (answer: Answer) => {
      settle(worker, answer);
    });
    worker.on('error', fail);
    workers.push(worker);
    return worker;
  };
  const distribute = () => {
    for (;;) {
      if (waiting.now.length + waiting.later.length === 0) return;
      const worker = idle.pop() ?? (workers.length < options.threads ? start() : undefined);
      if (worker === undefined) return;
      const group = waiting.now.shift() ?? waiting.later.shift();
      if (group === undefined) return;
      busy.set(worker, group);
      worker.postMessage(group.files);
    }
  };
  return {
    async check(files, priority) {
      if (failure !== null) throw failure;
      const groups = groupsOf(files).map((group) => ({
        files: group,
        done: Promise.withResolvers<readonly (CheckedFile | null)[]>(),
      }));
      waiting[priority].push(...groups);
      distribute();
      return (await Promise.all(groups.map(async ({ done }) => await done.promise))).flat();
    },
    [Symbol.asyncDispose]: async () => {
      fail(new Error('the page checker was closed'));
      await Promise.all(workers.map(async (worker) => await worker.terminate()));
    },
  };
}

function groupsOf(files: readonly FileToCheck[]): readonly (readonly FileToCheck[])[] {
  const groups: FileToCheck[][] = [];
  let bytes = Number.POSITIVE_INFINITY;
  for (const file of files) {
    const last = groups.at(-1);
    if (
      last === undefined ||
      last.length >= GROUP_FILES_MAX ||
      bytes + file.bytes > GROUP_BYTES_MAX
    ) {
      groups.push([file]);
      bytes = file.bytes;
    } else {
      last.push(file);
      bytes += file.bytes;
    }
  }
  return groups;
}

function unreadable({
  path,
  reason,
}: {
  readonly path: string;
  readonly reason: string;
}): CloneError {
  return new CloneError('TRANSFER_FAILED', `${path} cannot be read again: ${reason}`, {
    facts: { path, reason },
    hint: 'See the kernel log of this host and the state of its disk before you clone again.',
  });
}
