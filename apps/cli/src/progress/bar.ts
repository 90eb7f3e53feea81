/**
 * Progress as one line of a terminal that is drawn again and again.
 *
 * The bar is about bytes, and only the copy has those: other phases show their name and for how long they have run.
 */
import type { Progress } from '@pgcloned/contract';
import { MultiBar } from 'cli-progress';
import { describeCopy, formatDuration, fractionDone, runningPhase } from './describe.ts';
import type { ProgressDisplay } from './display.ts';

const BAR_WIDTH = 30;

export function openBar({ intervalMs }: { readonly intervalMs: number }): ProgressDisplay {
  const bars = new MultiBar({
    stream: process.stderr,
    fps: 1000 / intervalMs,
    format: (_options, _parameters, { progress }: { progress: Progress | null }) =>
      progress === null ? '' : describe(progress),
    clearOnComplete: true,
    hideCursor: true,
    // Else the library ends the process at a signal, in the middle of our own clean-up.
    gracefulExit: false,
    forceRedraw: true,
  });
  const bar = bars.create(1, 0, { progress: null });
  return {
    line: (text) => {
      bars.log(`${text}\n`);
    },
    update: (progress) => {
      bar.update(fractionDone(progress), { progress });
    },
    [Symbol.dispose]: () => {
      bars.stop();
    },
  };
}

function describe(progress: Progress): string {
  const running = runningPhase(progress);
  const step = progress.phases.filter(({ state }) => state === 'done').length + 1;
  const steps = progress.phases.length;
  if (running === null) return '';
  const name = `[${String(step)}/${String(steps)}] ${running.name.padEnd(13)}`;
  if (running.name === 'copy-files') {
    const fraction = fractionDone(progress);
    const filled = Math.round(fraction * BAR_WIDTH);
    const drawn = '█'.repeat(filled) + '░'.repeat(BAR_WIDTH - filled);
    return `${name} ${drawn} ${String(Math.floor(fraction * 100)).padStart(3)} %  ${describeCopy(progress)}`;
  }
  const startedAtMs = running.startedAt === null ? Date.now() : Date.parse(running.startedAt);
  return `${name} ${formatDuration(Date.now() - startedAtMs)}`;
}
