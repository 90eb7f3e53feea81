/** Progress as lines with a time, for logs: one per phase, and one per interval while something takes long. */
import type { Progress } from '@pgcloned/contract';
import { describeCopy, formatDuration, runningPhase } from './describe.ts';
import type { ProgressDisplay } from './display.ts';

export function openPlainLines({ intervalMs }: { readonly intervalMs: number }): ProgressDisplay {
  const ended = new Set<string>();
  let saidAtMs = Date.now();
  const line = (text: string) => {
    process.stderr.write(`${new Date().toISOString()} ${text}\n`);
  };
  return {
    line,
    update(progress) {
      for (const phase of progress.phases) {
        if (phase.state === 'waiting' || phase.state === 'running' || ended.has(phase.name))
          continue;
        ended.add(phase.name);
        line(`${phase.name}: ${phase.state}${tookOf(phase)}`);
        saidAtMs = Date.now();
      }
      const running = runningPhase(progress);
      if (running === null || Date.now() - saidAtMs < intervalMs) return;
      saidAtMs = Date.now();
      line(`${running.name}: ${describeRunning(progress, running)}`);
    },
    [Symbol.dispose]: () => {},
  };
}

function tookOf({ startedAt, endedAt }: Progress['phases'][number]): string {
  if (startedAt === null || endedAt === null) return '';
  return ` after ${formatDuration(Date.parse(endedAt) - Date.parse(startedAt))}`;
}

function describeRunning(progress: Progress, { name, startedAt }: Progress['phases'][number]) {
  if (name === 'copy-files') return describeCopy(progress);
  const { receivedLsn } = progress.wal;
  const runsFor = startedAt === null ? '' : formatDuration(Date.now() - Date.parse(startedAt));
  return `running for ${runsFor}${receivedLsn === null ? '' : `, WAL received up to ${receivedLsn}`}`;
}
