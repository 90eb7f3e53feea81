/**
 * One cell: a clone under load is caught in the middle of a phase and struck, and what was promised is looked at.
 *
 * Whatever the row: while it is caught and after a failure nothing can be started, in the end every row is in the clone,
 * and neither side keeps anything.
 */
import { type Clone, PHASES, type PhaseName } from '@pgcloned/contract';
import {
  isPublished,
  requireCommits,
  requireNothingLeft,
  requireNoWalKept,
  requireSound,
  requireUnstartable,
  requireWhole,
  untilFollowed,
} from './checks.ts';
import { askForClone, removeClone, SLOW, type Target, untilEnded } from './clone-under-test.ts';
import { catchIn } from './moments.ts';
import { everywhere, goesOn, type Promised } from './promises.ts';
import { asBefore, ROWS, type Row, type Struck, settingOf } from './rows.ts';
import type { Stage } from './stage.ts';

const CAUGHT_WITHIN_MS = 60_000;

export interface Cell {
  readonly row: Row;
  readonly phase: PhaseName;
}

export interface Held {
  /** How long after the end of the clone something of it was still there. */
  readonly cleanAfterMs: number;
  readonly longestCommitMs: number;
  readonly attempts: number;
}

export const nameOf = ({ row, phase }: Cell) => `${row.name}/${phase}`;

const promisedIn = ({ row, phase }: Cell): Promised => row.promises[phase];

const ALL: readonly Cell[] = ROWS.flatMap((row) => PHASES.map((phase) => ({ row, phase })));

const isNothing = (cell: Cell) => promisedIn(cell).kind === 'nothing';

/** Those in which there is something to kill. */
export const CELLS = ALL.filter((cell) => !isNothing(cell));

/** @throws What does not hold. The stage is fit for another cell only if this does not throw. */
export async function playCell(cell: Cell, stage: Stage): Promise<Held> {
  const promised = promisedIn(cell);
  const target = stage.targetOf(String(Date.now()));
  await using load = await stage.startLoad();
  const clone = await strikeIn(cell, stage, target);
  const ended = await untilEnded(stage, clone);
  await cell.row.mendAfterwards?.(stage);
  const cleanAfterMs = await requireNothingLeft(stage, ended);
  requireEnd(promised, ended);
  if (!isPublished(target)) {
    await requireUnstartable(stage, target);
    const again = await untilEnded(stage, await askForClone(stage, target));
    requireEnd(goesOn, again);
  }
  const longestCommitMs = await load.stop();
  requireCommits(longestCommitMs);
  await untilFollowed(stage);
  if (promised.kind === 'cut off') await requireSound(target);
  else await requireWhole(stage, target);
  await requireNoWalKept(stage);
  await removeClone(target);
  return { cleanAfterMs, longestCommitMs, attempts: ended.attempt };
}

/** In this phase there is nothing of what the rows kill that say so, for a primary; the clone then goes on. */
export async function playNothing(phase: PhaseName, stage: Stage): Promise<Held> {
  const find = async (struck: Struck) => {
    const isMeant = (cell: Cell) =>
      cell.phase === phase && isNothing(cell) && settingOf(cell.row) === stage.setting;
    for (const { row } of ALL.filter(isMeant))
      if ((await row.find?.(struck))?.length !== 0)
        throw new Error(`there is something to kill: ${row.name}`);
    return [0];
  };
  const row = { name: '', promises: everywhere(goesOn), find, strike: asBefore, mend: asBefore };
  return await playCell({ row, phase }, stage);
}

async function strikeIn({ row, phase }: Cell, stage: Stage, target: Target): Promise<Clone> {
  using moment = catchIn(phase, stage);
  const pace = phase === 'copy-files' ? SLOW : {};
  const clone = await askForClone(stage, target, { ...pace, ...row.transfer });
  await moment.reached(clone, AbortSignal.timeout(CAUGHT_WITHIN_MS));
  if (phase !== 'start-replica') await requireUnstartable(stage, target);
  const struck: Struck = { stage, clone, atMs: performance.now() };
  const pids = (await row.find?.(struck)) ?? null;
  if (pids?.length === 0) throw new Error('there is nothing to kill');
  await row.strike(struck, pids ?? []);
  moment.letGo();
  await row.requireMeanwhile?.(struck);
  await row.mend(struck, pids ?? []);
  return clone;
}

function requireEnd(promised: Promised, { state, attempt, error, instance }: Clone): void {
  const isPublished = instance.state === 'stopped' || instance.state === 'running';
  const success = attempt === 1 ? 'goes on' : 'resumes';
  const published = promised.kind === 'cut off' ? 'cut off' : 'complete';
  const end = state === 'succeeded' ? success : isPublished ? published : 'fails';
  const isNamed = 'codes' in promised && promised.codes.some((code) => code === error?.code);
  if (end === promised.kind && (error === null || isNamed)) return;
  // The news may also come after the clone has seen all that it waits for.
  if (published === promised.kind && state === 'succeeded') return;
  const why = error === null ? '' : `: ${JSON.stringify(error)}`;
  throw new Error(`it ${end} after ${String(attempt)} attempts${why}`);
}
