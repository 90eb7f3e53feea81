/** Nothing that writes a clone runs as root: PostgreSQL would refuse its files, and a mistake could reach everything. */
import { CloneError } from '@pgcloned/contract';
import { quoteForShell } from '@pgcloned/process';

/**
 * @param words Behind `pgcloned`, to be repeated in the remedy.
 * @throws {CloneError} `RUNNING_AS_ROOT`
 */
export function refuseRoot(words: readonly string[]): void {
  if (process.getuid?.() !== 0) return;
  throw new CloneError('RUNNING_AS_ROOT', `pgcloned ${words[0] ?? ''} may not run as root`, {
    hint: `Run it as the user that shall own the clones: runuser -u postgres -- pgcloned ${words.map(quoteForShell).join(' ')}`,
  });
}
