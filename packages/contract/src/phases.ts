/**
 * The eight phases of a clone, in the order in which they run.
 *
 * The same names stand in file names, API, logs and metrics, so that a name seen in one place finds all others.
 */

export const PHASES = [
  'preflight',
  'stream-wal',
  'start-backup',
  'copy-files',
  'stop-backup',
  'collect-wal',
  'publish',
  'start-replica',
] as const;

export type PhaseName = (typeof PHASES)[number];

export const PHASE_STATES = ['waiting', 'running', 'done', 'failed', 'skipped'] as const;

export type PhaseState = (typeof PHASE_STATES)[number];
