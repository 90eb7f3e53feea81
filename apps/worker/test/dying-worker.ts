/** A worker whose clones never end, as a program: to be killed. Says `running` when it has begun one. */
import { startWorker } from '../src/index.ts';
import { playedEngine, workerOptions } from './worker-parts.ts';

const [redisUrl = '', directory = ''] = process.argv.slice(2);
const engine = playedEngine();
await startWorker(workerOptions({ redisUrl, directory }), {
  ...engine,
  runClone: async (plan, o) => {
    o.observer.phaseStarted('copy-files');
    console.log('running');
    return await engine.runClone(plan, o);
  },
});
