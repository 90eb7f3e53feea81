/** Which cells are played, in which order, and the seed that decides it where it is drawn. */
import { PHASES } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import { CELLS, type Held, nameOf, playCell, playNothing } from './cell.ts';
import { drawFrom } from './draw.ts';
import type { Scene } from './play.ts';
import { settingOf } from './rows.ts';

const GIT_TIMEOUT_MS = 10_000;

export const CELL_SCENES: readonly Scene<Held>[] = [
  ...CELLS.map((cell) => ({
    name: nameOf(cell),
    setting: settingOf(cell.row),
    play: async (stage: Parameters<typeof playCell>[1]) => await playCell(cell, stage),
  })),
  ...PHASES.map((phase) => ({
    name: `nothing to kill/${phase}`,
    setting: 'primary' as const,
    play: async (stage: Parameters<typeof playCell>[1]) => await playNothing(phase, stage),
  })),
];

const LONG = new Set(CELLS.filter(({ row }) => row.isLong === true).map(nameOf));

/** All cells but those that take minutes, in an order of this seed. */
export function sampleScenes(seed: string): readonly Scene<Held>[] {
  return drawFrom(seed).shuffle(CELL_SCENES.filter(({ name }) => !LONG.has(name)));
}

/** The commit, so that each is tested by other cells; without one the day. */
export async function defaultSeed(): Promise<string> {
  const args = ['-c', 'safe.directory=*', 'rev-parse', '--short', 'HEAD'];
  const { status, stdout } = await runProcess(
    { file: 'git', args, env: {}, cwd: import.meta.dirname },
    { signal: AbortSignal.timeout(GIT_TIMEOUT_MS), accept: 'any' },
  );
  return status === 0 ? stdout.toString().trim() : new Date().toISOString().slice(0, 10);
}
