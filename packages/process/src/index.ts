/** Programs that always end, locks that survive nobody, files that are never torn. */
export {
  type Finished,
  type RunningProcess,
  type RunOptions,
  runProcess,
  type StartOptions,
  startProcess,
} from './child-process.ts';
export { type Command, describeExit, type Exit } from './command.ts';
export {
  type CommandRunner,
  type ProcessRunner,
  quoteForShell,
  type RemoteExit,
  type RemoteProcess,
  type RunRemoteOptions,
} from './command-runner.ts';
export { syncDirectory, unfinishedWrites, writeDurably } from './durable-file.ts';
export { type FileLock, lockFile } from './file-lock.ts';
export { splitLines } from './line-splitter.ts';
export { localRunner } from './local-runner.ts';
export { isWithin } from './path.ts';
export { readPlainFile } from './plain-file.ts';
export { findProgram } from './program.ts';
export { codeOf, ifMissing, isDiskFull, isMissing } from './system-error.ts';
export { together } from './together.ts';
export { unlessAborted } from './unless-aborted.ts';
