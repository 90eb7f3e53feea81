/**
 * Tidies up a source host after engines that died together with their leases' guards: a reboot, an out-of-memory kill.
 *
 * Everything else ends by itself (see `remote.sh`). A directory whose lease still runs is left alone, whoever's it is.
 */
import type { CommandRunner } from '@pgcloned/process';
import { askRemoteText } from './remote-script.ts';

/** A look through /proc and a few directories. */
const SWEEP_LIMIT_MS = 60_000;

/**
 * Removes directories and daemons named `pgcloned_*` of the remote user that nobody is in charge of any more.
 *
 * @returns The names of the clones they belonged to.
 * @throws {CloneError} `REMOTE_COMMAND_FAILED`, and what the runner throws.
 */
export async function sweepHost(
  runner: CommandRunner,
  o: { readonly signal: AbortSignal },
): Promise<readonly string[]> {
  const answer = await askRemoteText(runner, 'sweep', [], {
    signal: o.signal,
    limitMs: SWEEP_LIMIT_MS,
  });
  return answer.split('\n').filter((line) => line !== '');
}
