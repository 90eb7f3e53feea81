/** Progress as objects, one per line, for programs: at every change of phase and once per interval. */
import { printJson } from '../output.ts';
import type { ProgressDisplay } from './display.ts';

export function openJsonLines({ intervalMs }: { readonly intervalMs: number }): ProgressDisplay {
  let saidAtMs = 0;
  let phasesSaid = '';
  return {
    line: (text) => {
      printJson({ event: 'message', time: new Date().toISOString(), text });
    },
    update(progress) {
      const phases = progress.phases.map(({ state }) => state).join();
      if (phases === phasesSaid && Date.now() - saidAtMs < intervalMs) return;
      phasesSaid = phases;
      saidAtMs = Date.now();
      printJson({ event: 'progress', time: new Date().toISOString(), progress });
    },
    [Symbol.dispose]: () => {},
  };
}
