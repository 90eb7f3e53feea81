/** The clone itself: a plan, a signal and an observer in, a clone out. Neither HTTP nor Redis. */
export { SUPPORTED_MAJORS } from '@pgcloned/postgres';
export { type RunCloneOptions, runClone } from './clone.ts';
export { type InstancePlan, lookAtInstance } from './instance/look.ts';
export { removeInstance } from './instance/remove.ts';
export {
  type GivenWay,
  giveWay,
  keepPort,
  settleInstance,
  startInstance,
  stopInstance,
} from './instance/serve.ts';
export { measureInstance } from './instance/space.ts';
export type { CloneObserver } from './observer.ts';
export type { ClonePlan, HostPolicy, SourceRole } from './plan.ts';
export { runPreflight } from './preflight/run-preflight.ts';
export { type ProgressTracker, trackProgress } from './progress-tracker.ts';
export { sharesBlocks } from './shared-blocks.ts';
export { type SweepOptions, type SweepReport, sweepClone } from './sweep.ts';
export type { FilledDirectory } from './target/prepare.ts';
export { controlTransfer, type TransferControl } from './transfer-control.ts';
