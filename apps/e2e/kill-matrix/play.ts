/**
 * Plays cells and rounds on several stages side by side.
 *
 * A stage that one has left broken is replaced; its logs are kept for whoever looks for the reason.
 */
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { unlessAborted } from '@pgcloned/process';
import { prepareStage, type Setting, type Stage } from './stage.ts';

export interface Scene<Result> {
  readonly name: string;
  readonly setting: Setting;
  /** @throws What does not hold. */
  readonly play: (stage: Stage) => Promise<Result>;
}

export type Played<Result> = {
  readonly name: string;
  readonly tookMs: number;
} & ({ readonly result: Result } | { readonly error: Error; readonly logDirectory: string });

/** @param untilMs No scene is begun after that, by `performance.now`. */
export async function playAll<Result>(
  scenes: readonly Scene<Result>[],
  {
    stages,
    untilMs = Number.POSITIVE_INFINITY,
    onPlayed,
    signal,
  }: {
    readonly stages: number;
    readonly untilMs?: number;
    readonly onPlayed: (played: Played<Result>) => void;
    /** Ends everything at once; what was being played is then not reported. */
    readonly signal: AbortSignal;
  },
): Promise<readonly Played<Result>[]> {
  const waiting = [...scenes];
  const all: Played<Result>[] = [];
  const playOnOneStage = async () => {
    let stage: Stage | null = null;
    try {
      while (performance.now() < untilMs) {
        // As long as there are any that the stage is set for.
        const fitting = waiting.findIndex(({ setting }) => setting === stage?.setting);
        const [scene] = waiting.splice(Math.max(0, fitting), 1);
        if (scene === undefined) return;
        if (stage !== null && stage.setting !== scene.setting) {
          await stage[Symbol.asyncDispose]();
          stage = null;
        }
        stage ??= await prepareStage(scene.setting);
        const played = await unlessAborted(playOne(scene, stage), signal);
        if ('error' in played) {
          await stage[Symbol.asyncDispose]();
          stage = null;
        }
        all.push(played);
        onPlayed(played);
      }
    } finally {
      await stage?.[Symbol.asyncDispose]();
    }
  };
  // Each has put its stage away before any failure is told.
  const ends = await Promise.allSettled(Array.from({ length: stages }, playOnOneStage));
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
  return all;
}

async function playOne<Result>(
  { name, play }: Scene<Result>,
  stage: Stage,
): Promise<Played<Result>> {
  const beganAtMs = performance.now();
  const tookMs = () => performance.now() - beganAtMs;
  try {
    return { name, result: await play(stage), tookMs: tookMs() };
  } catch (cause) {
    const error = cause instanceof Error ? cause : new Error(String(cause));
    return { name, error, tookMs: tookMs(), logDirectory: await keepLogs(name, stage, error) };
  }
}

async function keepLogs(name: string, stage: Stage, error: Error): Promise<string> {
  const directory = join(tmpdir(), 'kill-matrix', name.replaceAll(/[^\w.-]+/g, '_'));
  await mkdir(directory, { recursive: true });
  await cp(stage.pgcloned.logFile, join(directory, 'pgcloned.log'));
  await cp(stage.source.primary.logFile, join(directory, 'primary.log'));
  await cp(stage.server.logFile, join(directory, 'cloned.log'));
  await cp(stage.source.sshd.logFile, join(directory, 'sshd.log'));
  await writeFile(join(directory, 'error'), `${inspect(error)}\n`);
  return directory;
}
