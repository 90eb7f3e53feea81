/** What shares blocks: whether a filesystem does at all, and how many bytes of a clone are its own. */
import { CloneError } from '@pgcloned/contract';
import { probeReflink } from '@pgcloned/reflink';

/** Whether method `reflink` works within the directory; null if that cannot be found out, as without the right to write. */
export async function sharesBlocks(directory: string): Promise<boolean | null> {
  try {
    await probeReflink(directory, directory);
    return true;
  } catch (error) {
    if (!(error instanceof CloneError)) throw error;
    return error.code === 'REFLINK_UNSUPPORTED' ? false : null;
  }
}
