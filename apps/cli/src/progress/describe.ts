/** The words for progress: one place, so that bar, lines and summary say the same thing in the same way. */
import { formatBytes, type Progress } from '@pgcloned/contract';

export function describeCopy(progress: Progress): string {
  const { bytesDone, bytesTotal, bytesPerSecond, etaSeconds } = progress;
  const parts = [`${formatBytes(bytesDone)} of ${formatBytes(bytesTotal)}`];
  if (bytesPerSecond > 0) parts.push(`${formatBytes(bytesPerSecond)}/s`);
  if (etaSeconds !== null) parts.push(`${formatSeconds(etaSeconds)} left`);
  return parts.join(', ');
}

/** The phase that runs, or null between two and at the end. */
export function runningPhase(progress: Progress): Progress['phases'][number] | null {
  return progress.phases.find(({ state }) => state === 'running') ?? null;
}

export function fractionDone({ bytesDone, bytesTotal }: Progress): number {
  return bytesTotal === 0 ? 0 : Math.min(1, bytesDone / bytesTotal);
}

/** `0.41 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`. */
export function formatDuration(durationMs: number): string {
  const seconds = durationMs / 1000;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : formatSeconds(seconds);
}

/** The same of an estimate, which knows no fractions. */
function formatSeconds(seconds: number): string {
  if (seconds < 60) return `${String(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${String(minutes)} min ${twoDigits(seconds % 60)} s`;
  return `${String(Math.floor(minutes / 60))} h ${twoDigits(minutes % 60)} min`;
}

function twoDigits(number: number): string {
  return String(Math.floor(number)).padStart(2, '0');
}
