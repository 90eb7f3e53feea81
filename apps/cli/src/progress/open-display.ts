/** Chooses how progress is shown: by what was asked for, and by whether standard error is a terminal. */
import type { GlobalOptions, ProgressOptions } from '../invocation.ts';
import { openBar } from './bar.ts';
import type { ProgressDisplay } from './display.ts';
import { openJsonLines } from './json-lines.ts';
import { openPlainLines } from './plain-lines.ts';

/** Often enough to look alive; each costs one redraw. */
const BAR_INTERVAL_SECONDS = 0.25;

/** Rare enough for the log of a copy that takes hours. */
const PLAIN_INTERVAL_SECONDS = 10;

export function openDisplay({
  json,
  progress,
  progressInterval,
}: Pick<GlobalOptions, 'json'> & ProgressOptions): ProgressDisplay {
  // A bar needs a terminal; elsewhere it would not be drawn at all.
  const drawn = process.stderr.isTTY ? 'bar' : 'plain';
  const mode = progress === 'auto' || progress === 'bar' ? drawn : progress;
  const plainIntervalMs = (progressInterval ?? PLAIN_INTERVAL_SECONDS) * 1000;
  if (mode === 'none') return SILENT;
  if (json === true) return openJsonLines({ intervalMs: plainIntervalMs });
  if (mode === 'plain') return openPlainLines({ intervalMs: plainIntervalMs });
  return openBar({ intervalMs: (progressInterval ?? BAR_INTERVAL_SECONDS) * 1000 });
}

const SILENT: ProgressDisplay = {
  update: () => {},
  line: () => {},
  [Symbol.dispose]: () => {},
};
