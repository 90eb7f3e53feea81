/** A copy that shares nothing, for where that was asked for. It ends at the end of the file, wherever that is by then. */
import { open, rm } from 'node:fs/promises';
import type { FilePath } from './file-path.ts';

const CHUNK_BYTES = 1024 * 1024;

/**
 * Makes `to`, which must not exist. libuv's own copy is not used: it would never end with a file that gets shorter.
 *
 * @throws The signal's reason if it aborts; `to` is gone then, as after any failure.
 */
export async function copyBytes(o: {
  readonly from: FilePath;
  readonly to: FilePath;
  readonly mode: number;
  readonly signal: AbortSignal;
}): Promise<void> {
  await using source = await open(o.from, 'r');
  await using target = await open(o.to, 'wx', o.mode);
  try {
    await target.chmod(o.mode);
    const buffer = Buffer.allocUnsafe(CHUNK_BYTES);
    for (;;) {
      o.signal.throwIfAborted();
      const { bytesRead } = await source.read(buffer, 0, CHUNK_BYTES, null);
      if (bytesRead === 0) return;
      // Unlike write(), it does not stop half way.
      await target.writeFile(buffer.subarray(0, bytesRead));
    }
  } catch (error) {
    await rm(o.to, { force: true });
    throw error;
  }
}
