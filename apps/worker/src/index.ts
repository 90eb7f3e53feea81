/** Takes the clones of its host from the queue and has the engine make them. */
export {
  type Engine,
  type RunningWorker,
  startWorker,
  type WorkerOptions,
} from './start-worker.ts';
