/**
 * Many files that share their blocks with others, a few at a time.
 *
 * FICLONE takes a fifth of a millisecond, whatever the size of a file, and longer if it has to write back what is dirty in
 * memory first (R10.4). That is less than Node needs to hand a call over to a thread of its pool and to hear of its end, so
 * many files are made by threads of ours, a batch at a time.
 */
import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { FilePath } from './file-path.ts';
import { type ReflinkOptions, type ReflinkOutcome, reflinkFile } from './reflink-file.ts';

const WORKERS_MAX = 4;

/** Fewer are done before threads have started. */
const THREADS_FROM_FILES = 500;

/** Some tens of milliseconds of work: so long a cancel may take to be heeded, and so seldom a thread waits for us. */
const BATCH_FILES = 200;

export interface FileToReflink {
  readonly from: FilePath;
  /** Must not exist; its directory must. */
  readonly to: FilePath;
}

export interface Reflinked<File> {
  readonly files: number;
  /** Their sizes, shared or not. */
  readonly bytes: number;
  /** Of these, how many were copied since they could not be shared. */
  readonly copiedBytes: number;
  /** What was not there any more. */
  readonly vanished: readonly File[];
}

/**
 * Makes all of `files`, in about their order.
 *
 * @param workers How many at a time, at most 4. Default: 4.
 * @param onCopied Told of each file once it is complete.
 * @throws What `reflinkFile` throws, of the first file that fails; by then none is being made any more. Those that were
 *   made stay.
 * @throws The signal's reason if it aborts.
 */
export async function reflinkFiles<File extends FileToReflink>(
  o: ReflinkOptions & {
    readonly files: readonly File[];
    readonly workers?: number;
    readonly onCopied?: (file: File, bytes: number) => void;
  },
): Promise<Reflinked<File>> {
  const vanished: File[] = [];
  let [files, bytes, copiedBytes] = [0, 0, 0];
  let isFailing = false;
  let begun = 0;
  const onThreads = o.files.length >= THREADS_FROM_FILES;

  const count = (file: File, outcome: ReflinkOutcome) => {
    if (outcome.how === 'vanished') {
      vanished.push(file);
      return;
    }
    files += 1;
    bytes += outcome.bytes;
    if (outcome.how === 'copied') copiedBytes += outcome.bytes;
    o.onCopied?.(file, outcome.bytes);
  };
  const work = async (thread: Worker | null) => {
    for (;;) {
      const batch = o.files.slice(begun, begun + (thread === null ? 1 : BATCH_FILES));
      begun += batch.length;
      if (batch.length === 0 || isFailing) return;
      o.signal.throwIfAborted();
      const sizes = thread === null ? [] : await reflinkOn(thread, batch);
      for (const [index, file] of batch.entries()) {
        const size = sizes[index] ?? null;
        count(file, size === null ? await reflinkFile(file, o) : { how: 'shared', bytes: size });
      }
    }
  };
  const runWorker = async () => {
    const thread = onThreads ? new Worker(new URL('./reflink-thread.js', import.meta.url)) : null;
    try {
      await work(thread);
    } catch (error) {
      isFailing = true;
      throw error;
    } finally {
      await thread?.terminate();
    }
  };
  const threadsMax = Math.max(2, availableParallelism());
  const workers = Math.min(
    o.workers ?? WORKERS_MAX,
    WORKERS_MAX,
    onThreads ? threadsMax : Infinity,
  );
  const ended = await Promise.allSettled(Array.from({ length: workers }, runWorker));
  const failure = ended.find(({ status }) => status === 'rejected');
  if (failure?.status === 'rejected') throw failure.reason;
  return { files, bytes, copiedBytes, vanished };
}

/** @returns The size of each file; null for one that it has not made, for whatever reason. */
async function reflinkOn(
  thread: Worker,
  files: readonly FileToReflink[],
): Promise<readonly (number | null)[]> {
  // One character per byte: a message would carry all the memory that lies around a small Buffer.
  const latin1 = (path: FilePath) =>
    (Buffer.isBuffer(path) ? path : Buffer.from(path)).toString('latin1');
  thread.postMessage(files.map(({ from, to }) => ({ from: latin1(from), to: latin1(to) })));
  const [sizes] = await once(thread, 'message');
  return sizes;
}
