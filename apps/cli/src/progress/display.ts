/**
 * Shows how far a clone is: a bar on a terminal, lines in a log, objects for programs, or nothing.
 *
 * A display is told as often as one likes and draws at its own pace. It writes to standard error, but for objects,
 * which are a result. What must stay readable above a bar goes through `line`.
 */
import type { Progress } from '@pgcloned/contract';

export interface ProgressDisplay extends Disposable {
  readonly update: (progress: Progress) => void;
  /** Something to say beside the progress, on one line. */
  readonly line: (text: string) => void;
}
