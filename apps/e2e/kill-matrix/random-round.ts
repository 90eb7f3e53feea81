/**
 * One random round: a clone under load is struck up to three times at random moments by random rows, and must get there
 * all the same; where it may fail, asking again must.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, PHASES } from '@pgcloned/contract';
import {
  isPublished,
  requireCommits,
  requireNothingLeft,
  requireNoWalKept,
  requireUnstartable,
  requireWhole,
  untilFollowed,
} from './checks.ts';
import { askForClone, removeClone, SLOW, type Target, untilEnded } from './clone-under-test.ts';
import { type Draw, drawFrom } from './draw.ts';
import { catchIn, caughtInCopy, type Moment } from './moments.ts';
import { ROWS, type Row, type Struck, settingOf } from './rows.ts';
import type { Setting, Stage } from './stage.ts';

const STRIKES_MAX = 3;
const DELAY_MS_MAX = 4_000;
/** A clone that does not come to a moment is not struck there. */
const MOMENT_WITHIN_MS = 15_000;

/** What ends for good cannot be struck once more. */
const rowsFor = (setting: Setting) =>
  ROWS.filter((row) => row.isLong !== true && settingOf(row) === setting && row.isForGood !== true);

export interface Round {
  /** What has struck, in this order. */
  readonly struck: readonly string[];
  readonly attempts: number;
  readonly end: string;
}

/** @param seed Decides all that is decided here; what the machine makes of it differs from time to time. */
export async function playRound(seed: string, stage: Stage): Promise<Round> {
  const strikes = drawStrikes(drawFrom(seed), rowsFor(stage.setting));
  const target = stage.targetOf(String(Date.now()));
  await using load = await stage.startLoad();
  const struck: string[] = [];
  try {
    const ended = await strikeAll(strikes, stage, target, (name) => struck.push(name));
    for (const { row } of strikes) await row.mendAfterwards?.(stage);
    await requireNothingLeft(stage, ended);
    if (!isPublished(target)) {
      if (ended.error?.retryable !== true)
        throw new Error(`it failed for good: ${JSON.stringify(ended.error)}`);
      await requireUnstartable(stage, target);
      const again = await untilEnded(stage, await askForClone(stage, target));
      if (again.state !== 'succeeded')
        throw new Error(`asking again did not help: ${JSON.stringify(again.error)}`);
    }
    requireCommits(await load.stop());
    await untilFollowed(stage);
    await requireWhole(stage, target);
    await requireNoWalKept(stage);
    await removeClone(target);
    return { struck, attempts: ended.attempt, end: ended.error?.code ?? ended.state };
  } catch (cause) {
    throw new Error(`after ${struck.join(', ')}`, { cause });
  }
}

interface Strike {
  readonly row: Row;
  readonly name: string;
  readonly catch: (stage: Stage) => Moment;
  /** In the order of phases: what comes first in a clone strikes first. */
  readonly position: number;
}

function drawStrikes(draw: Draw, rows: readonly Row[]): readonly Strike[] {
  const count = 1 + Math.floor(draw.share() * STRIKES_MAX);
  return Array.from({ length: count }, () => drawStrike(draw, rows)).toSorted(
    (a, b) => a.position - b.position,
  );
}

/** In the middle of a phase, at a share of the copy, or whenever. */
function drawStrike(draw: Draw, rows: readonly Row[]): Strike {
  const row = draw.pick(rows);
  const kind = draw.pick(['phase', 'share', 'time'] as const);
  const share = draw.share();
  if (kind === 'phase') {
    const phase = draw.pick(PHASES);
    return {
      row,
      name: `${row.name} in ${phase}`,
      catch: (stage) => catchIn(phase, stage),
      position: PHASES.indexOf(phase),
    };
  }
  if (kind === 'share')
    return {
      row,
      name: `${row.name} at ${share.toFixed(2)} of the copy`,
      catch: () => caughtInCopy(share),
      position: PHASES.indexOf('copy-files') + share,
    };
  const ms = Math.round(share * DELAY_MS_MAX);
  return { row, name: `${row.name} after ${String(ms)} ms`, catch: () => after(ms), position: 0 };
}

/** @returns The clone once it has ended. */
async function strikeAll(
  strikes: readonly Strike[],
  stage: Stage,
  target: Target,
  onStruck: (name: string) => void,
): Promise<Clone> {
  const over = new AbortController();
  let asked: { readonly clone: Clone; readonly ended: Promise<Clone> } | null = null;
  try {
    for (const { row, name, catch: caught } of strikes) {
      using moment = caught(stage);
      // Only now, so that it does not pass before it can be caught.
      asked ??= await ask(stage, target, over);
      const signal = AbortSignal.any([over.signal, AbortSignal.timeout(MOMENT_WITHIN_MS)]);
      const isThere = await moment.reached(asked.clone, signal).then(
        () => true,
        () => false,
      );
      const struck: Struck = { stage, clone: asked.clone, atMs: performance.now() };
      const pids = isThere ? ((await row.find?.(struck)) ?? [0]) : [];
      if (pids.length === 0) continue;
      onStruck(name);
      await row.strike(struck, pids);
      moment.letGo();
      await row.mend(struck, pids);
    }
    if (asked === null) throw new Error('no strike was drawn');
    return await asked.ended;
  } finally {
    over.abort();
  }
}

async function ask(
  stage: Stage,
  target: Target,
  over: AbortController,
): Promise<{ readonly clone: Clone; readonly ended: Promise<Clone> }> {
  const clone = await askForClone(stage, target, SLOW);
  const ended = untilEnded(stage, clone, over.signal);
  // Whoever waits for the end hears of a failure, too.
  ended.then(
    () => {
      over.abort();
    },
    () => {
      over.abort();
    },
  );
  return { clone, ended };
}

function after(ms: number): Moment {
  return {
    reached: async (_clone, signal) => {
      await delay(ms, null, { signal });
    },
    letGo: () => {},
    [Symbol.dispose]: () => {},
  };
}
