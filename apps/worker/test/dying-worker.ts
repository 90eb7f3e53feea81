/**
 * A worker whose clones never end, as a program: to be killed. Says `running` when it has begun one; with a third argument
 * it waits for the next attempt then.
 */
import { CloneError } from '@pgcloned/contract';
import { startWorker } from '../src/index.ts';
import { playedEngine, workerOptions } from './worker-parts.ts';

const [redisUrl = '', directory = '', interrupted] = process.argv.slice(2);
const engine = playedEngine();
await startWorker(workerOptions({ redisUrl, directory }), {
  ...engine,
  runClone: async (plan, o) => {
    o.observer.phaseStarted('copy-files');
    o.observer.copyPlanned({ bytesTotal: 200, filesTotal: 2, keptBytes: 50, workers: 1 });
    o.observer.sent(70);
    if (interrupted !== undefined) {
      const error = new CloneError('SOURCE_LOST', 'the backup session was lost');
      o.observer.interrupted({ attempt: 2, error, pauseMs: 60_000 });
    }
    console.log('running');
    return await engine.runClone(plan, o);
  },
});
