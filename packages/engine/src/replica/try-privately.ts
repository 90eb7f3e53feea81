/**
 * What has to happen to a clone before anybody else reaches it: its test start (`verification.boot`), and what the files of
 * `onReady` want of it.
 *
 * A clone in which those files have not come to their end must not be seen. Nobody can start it (`target/unready.ts`), which
 * holds also when we are killed here; after a failure it loses its pg_control as well.
 */
import { CloneError, type Verdict } from '@pgcloned/contract';
import type { PrivateServer } from '@pgcloned/postgres';
import type { CloneRun } from '../clone-run.ts';
import type { Stop } from '../phases/stop-backup.ts';
import type { Ready } from '../ready.ts';
import { withdraw } from '../target/unready.ts';
import { bootClone } from './boot.ts';
import { isDetached, settleDetached } from './detached.ts';
import { runOnReadyFiles } from './on-ready.ts';
import { runPrivately, untilSessions } from './private-run.ts';
import type { Recovery } from './recovery.ts';
import { startLogOf } from './start-server.ts';

/**
 * @returns What became of `verification.boot`.
 * @throws {CloneError} `VERIFICATION_FAILED`, `ON_READY_FAILED`, `REPLICA_START_FAILED`; the server has ended then.
 */
export async function tryPrivately(run: CloneRun, ready: Ready, stop: Stop): Promise<Verdict> {
  const { plan } = run;
  const hasFiles = plan.source.onReady.length > 0;
  const isTested = plan.spec.verification.boot;
  if (!hasFiles && !isTested) return 'skipped';
  const dataDirectory = ready.data.final;
  const further = async (server: PrivateServer) => {
    await runOnReadyFiles(run, ready, server);
  };
  try {
    const verdict = isTested
      ? await bootClone(run, ready, { stop, further })
      : await runPrivately(run, ready, async (server) => {
          const { outcome, recovery } = await untilSessions(run, ready, server);
          if (outcome !== 'ready') throw unpromoted(ready, recovery, server.log());
          await further(server);
          return 'skipped' as const;
        });
    if (isDetached(plan)) await settleDetached(dataDirectory);
    return verdict;
  } catch (error) {
    if (hasFiles) await withdraw(dataDirectory);
    throw error;
  }
}

/** @param log The end of it. */
export function unpromoted(ready: Ready, recovery: Recovery, log: string): CloneError {
  return new CloneError('REPLICA_START_FAILED', 'the clone was not promoted', {
    facts: {
      dataDirectory: ready.data.final,
      minRecoveryLsn: recovery.minRecoveryLsn,
      logFile: startLogOf(ready.data.final),
      log,
    },
    hint: `See the end of its log (${startLogOf(ready.data.final)}, or where its logging_collector writes), mend what it names, and clone again.`,
  });
}
