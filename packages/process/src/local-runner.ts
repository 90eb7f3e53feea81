/** Commands on this very host, for whoever is given a `CommandRunner` and does not care where they run. */
import { runProcess } from './child-process.ts';
import type { CommandRunner } from './command-runner.ts';

export const localRunner: CommandRunner = {
  label: 'this host',
  run: async (command, { signal, input, onOutput, outputBytesMax }) =>
    await runProcess(
      { file: '/bin/sh', args: ['-c', command], env: {}, ...(input !== undefined && { input }) },
      {
        signal,
        accept: 'any',
        ...(onOutput !== undefined && { onOutput }),
        ...(outputBytesMax !== undefined && { outputBytesMax }),
      },
    ),
};
