/**
 * `npm run kill-matrix`: plays every cell and writes KILL-MATRIX.md, or plays what the options say.
 *
 * `--only TEXT` the cells whose name, `ROW/PHASE`, contains it (may be repeated); `--sample N` so many that the seed draws;
 * `--random N` so many random rounds, and `--round I` only the one of that number, in `--setting S` (stage.ts); `--seed S` decides what is drawn
 * (default: the commit); `--stages N` how many are played at a time. Exit status 1 if anything is broken.
 */
import { parseArgs } from 'node:util';
import { runsAsRoot } from '@pgcloned/testbed';
import { writeMatrix, writeRounds } from './document.ts';
import { type Played, playAll, type Scene } from './play.ts';
import { playRound } from './random-round.ts';
import { CELL_SCENES, defaultSeed, sampleScenes } from './sample.ts';
import { SETTINGS, type Setting } from './stage.ts';

const { values } = parseArgs({
  options: {
    only: { type: 'string', multiple: true },
    sample: { type: 'string' },
    random: { type: 'string' },
    round: { type: 'string' },
    seed: { type: 'string' },
    setting: { type: 'string', default: 'primary' },
    stages: { type: 'string', default: '2' },
  },
});
if (!runsAsRoot)
  throw new Error('the kill matrix needs root: a host of its own is a network namespace');
const seed = values.seed ?? (await defaultSeed());
const setting = SETTINGS.find((one) => one === values.setting);
if (setting === undefined) throw new Error(`--setting is one of ${SETTINGS.join(', ')}`);
const stop = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'])
  process.once(name, () => {
    stop.abort(new Error(`stopped by ${name}`));
  });
const beganAtMs = performance.now();
const tookMs = () => performance.now() - beganAtMs;

console.log(`kill matrix, seed ${seed}`);
let isBroken = false;
if (values.random !== undefined) {
  const all = await play(rounds(Number(values.random), setting));
  if (values.round === undefined && setting === 'primary')
    await writeRounds(all, { seed, tookMs: tookMs() });
} else if (values.only !== undefined) {
  const { only } = values;
  await play(CELL_SCENES.filter(({ name }) => only.some((text) => name.includes(text))));
} else if (values.sample !== undefined) {
  await play(sampleScenes(seed).slice(0, Number(values.sample)));
} else {
  await writeMatrix(await play(CELL_SCENES), { seed, tookMs: tookMs() });
}
process.exitCode = isBroken ? 1 : 0;

async function play<Result>(scenes: readonly Scene<Result>[]): Promise<readonly Played<Result>[]> {
  const all = await playAll(scenes, {
    stages: Number(values.stages),
    onPlayed: tell,
    signal: stop.signal,
  });
  isBroken = all.some((one) => 'error' in one);
  const broken = all.filter((one) => 'error' in one).map(({ name }) => name);
  console.log(
    `${String(all.length)} played in ${(tookMs() / 60_000).toFixed(1)} min, ${String(broken.length)} broken`,
  );
  for (const name of broken) console.log(`  ${name}`);
  return all;
}

function tell(played: Played<unknown>): void {
  const took = `${(played.tookMs / 1000).toFixed(1).padStart(6)} s  ${played.name}`;
  if ('result' in played) console.log(`${took}  ${JSON.stringify(played.result)}`);
  else
    console.log(
      `${took}  BROKEN: ${explain(played.error)}\n          logs: ${played.logDirectory}`,
    );
}

function explain(error: Error): string {
  const { cause } = error;
  return cause instanceof Error ? `${error.message}: ${explain(cause)}` : error.message;
}

function rounds(
  count: number,
  setting: Setting,
): readonly Scene<Awaited<ReturnType<typeof playRound>>>[] {
  return Array.from({ length: count }, (_, index) => String(index + 1))
    .filter((number) => values.round === undefined || number === values.round)
    .map((number) => ({
      name: `seed ${seed}, round ${number}`,
      setting,
      play: async (stage) => await playRound(`${seed}/${number}`, stage),
    }));
}
