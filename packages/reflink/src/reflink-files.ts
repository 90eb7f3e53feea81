/**
 * Many files that share their blocks with others, a few at a time.
 *
 * FICLONE takes a fifth of a millisecond, whatever the size of a file, and longer if it has to write back what is dirty in
 * memory first (R10.4). That wait is what several at a time are good for; libuv has four threads for them.
 */
import type { FilePath } from './file-path.ts';
import { type ReflinkOptions, reflinkFile } from './reflink-file.ts';

/** More would only wait for a thread of libuv, of which others need one, too. */
const WORKERS_MAX = 4;

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
  const waiting = o.files.values();

  const work = async () => {
    for (const file of waiting) {
      if (isFailing) return;
      o.signal.throwIfAborted();
      const outcome = await reflinkFile(file, o);
      if (outcome.how === 'vanished') {
        vanished.push(file);
        continue;
      }
      files += 1;
      bytes += outcome.bytes;
      if (outcome.how === 'copied') copiedBytes += outcome.bytes;
      o.onCopied?.(file, outcome.bytes);
    }
  };
  const workers = Array.from(
    { length: Math.min(o.workers ?? WORKERS_MAX, WORKERS_MAX) },
    async () => {
      try {
        await work();
      } catch (error) {
        isFailing = true;
        throw error;
      }
    },
  );
  const failure = (await Promise.allSettled(workers)).find(({ status }) => status === 'rejected');
  if (failure?.status === 'rejected') throw failure.reason;
  return { files, bytes, copiedBytes, vanished };
}
