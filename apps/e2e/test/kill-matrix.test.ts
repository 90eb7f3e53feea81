/**
 * Cells of the kill matrix (KILL-MATRIX.md), drawn by the commit and played for a minute: over time all are seen, but for
 * those that take minutes by themselves.
 */
import { runsAsRoot } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { playAll } from '../kill-matrix/play.ts';
import { defaultSeed, sampleScenes } from '../kill-matrix/sample.ts';

const BEGUN_WITHIN_MS = 60_000;

test.skipIf(!runsAsRoot)(
  'whatever is killed in whatever phase, what is promised holds; this takes root, for hosts of its own',
  { timeout: 300_000 },
  async ({ signal }) => {
    const seed = await defaultSeed();
    console.log(`kill matrix, seed ${seed}`);

    const all = await playAll(sampleScenes(seed), {
      stages: 2,
      untilMs: performance.now() + BEGUN_WITHIN_MS,
      signal,
      onPlayed: ({ name, tookMs }) => {
        console.log(`${(tookMs / 1000).toFixed(1)} s  ${name}`);
      },
    });

    const broken = all.flatMap((one) =>
      'error' in one
        ? [
            `npm run kill-matrix -- --only "${one.name}": ${String(one.error)} (${one.logDirectory})`,
          ]
        : [],
    );
    expect(broken, `seed ${seed}`).toEqual([]);
    expect(all.length).toBeGreaterThan(0);
  },
);
