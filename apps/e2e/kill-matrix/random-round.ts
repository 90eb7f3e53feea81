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
} from './checks.ts';
import { askForClone, removeClone, SLOW, untilEnded } from './clone-under-test.ts';
import { type Draw, drawFrom } from './draw.ts';
import { catchIn, caughtInCopy, type Moment } from './moments.ts';
import { ROWS, type Row, type Struck } from './rows.ts';
import type { Stage } from './stage.ts';

const STRIKES_MAX = 3;
const DELAY_MS_MAX = 4_000;
/** A clone that comes to no further moment is let go on. */
const MOMENT_WITHIN_MS = 10_000;

const SHORT_ROWS = ROWS.filter(({ isLong }) => isLong !== true);

export interface Round {
  /** What has struck, in this order. */
  readonly strikes: readonly string[];
  readonly attempts: number;
  readonly end: string;
}

/** @param seed Decides all that is decided here; what the machine makes of it differs from time to time. */
export async function playRound(seed: string, stage: Stage): Promise<Round> {
  const draw = drawFrom(seed);
  const target = stage.targetOf(String(Date.now()));
  await using load = await stage.startLoad();
  const { clone, strikes } = await strikeAtRandom(draw, stage, target);
  const said = strikes.map(({ name }) => name);
  try {
    const ended = await untilEnded(stage, clone);
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
    await requireWhole(stage, target);
    await requireNoWalKept(stage);
    await removeClone(target);
    return { strikes: said, attempts: ended.attempt, end: ended.error?.code ?? ended.state };
  } catch (error) {
    throw new Error(`after ${said.join(', ')}`, { cause: error });
  }
}

interface Strike {
  readonly row: Row;
  readonly name: string;
}

async function strikeAtRandom(
  draw: Draw,
  stage: Stage,
  target: ReturnType<Stage['targetOf']>,
): Promise<{ readonly clone: Clone; readonly strikes: readonly Strike[] }> {
  const wanted = Array.from({ length: 1 + Math.floor(draw.share() * STRIKES_MAX) }, () => ({
    row: draw.pick(SHORT_ROWS),
    at: drawMoment(draw),
  }));
  const strikes: Strike[] = [];
  let clone: Clone | null = null;
  for (const { row, at } of wanted) {
    using moment = at.catch(stage);
    // Caught before it is asked for: it must not pass.
    clone ??= await askForClone(stage, target, SLOW);
    const isThere = await moment.reached(clone, AbortSignal.timeout(MOMENT_WITHIN_MS)).then(
      () => true,
      () => false,
    );
    const struck: Struck = { stage, clone, atMs: performance.now() };
    const pids = isThere ? ((await row.find?.(struck)) ?? [0]) : [];
    if (pids.length === 0) continue;
    strikes.push({ row, name: `${row.name} ${at.name}` });
    await row.strike(struck, pids);
    moment.letGo();
    await row.mend(struck);
  }
  if (clone === null) throw new Error('nothing was drawn');
  return { clone, strikes };
}

interface DrawnMoment {
  readonly name: string;
  readonly catch: (stage: Stage) => Moment;
}

/** In the middle of a phase, at a share of the copy, or whenever. */
function drawMoment(draw: Draw): DrawnMoment {
  const kind = draw.pick(['phase', 'share', 'time'] as const);
  if (kind === 'phase') {
    const phase = draw.pick(PHASES);
    return { name: `in ${phase}`, catch: (stage) => catchIn(phase, stage) };
  }
  const share = draw.share();
  if (kind === 'share')
    return { name: `at ${share.toFixed(2)} of the copy`, catch: () => caughtInCopy(share) };
  const ms = Math.round(share * DELAY_MS_MAX);
  return { name: `after ${String(ms)} ms`, catch: () => after(ms) };
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
