/** KILL-MATRIX.md at the top of the repository: what is promised, and what the last full runs have found. */
import { readFile, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { PHASES, type PhaseName } from '@pgcloned/contract';
import type { Held } from './cell.ts';
import type { Played } from './play.ts';
import type { Promised } from './promises.ts';
import type { Round } from './random-round.ts';
import { ROWS } from './rows.ts';

const FILE = new URL('../../../KILL-MATRIX.md', import.meta.url);

/** The parts of the file that are written here; what stands between them is for people to write. */
type Part = 'table' | 'cells' | 'rounds';

/** The table and how long it took, after a run of all cells. */
export async function writeMatrix(
  all: readonly Played<Held>[],
  { seed, tookMs }: { readonly seed: string; readonly tookMs: number },
): Promise<void> {
  const broken = all.flatMap((one) => ('error' in one ? [one.name] : []));
  const held = all.flatMap((one) => ('result' in one ? [one.result] : []));
  const longest = (of: (one: Held) => number) => Math.max(0, ...held.map(of));
  await replace('table', table(new Set(broken)));
  await replace(
    'cells',
    [
      `All cells at ${seed}: ${verdict(all)} in ${minutes(tookMs)}, on ${String(availableParallelism())} cores.`,
      `Nothing was left on either side at the latest ${seconds(longest(({ cleanAfterMs }) => cleanAfterMs))} after the end of a clone;`,
      `the longest commit on the primary took ${seconds(longest(({ longestCommitMs }) => longestCommitMs))}.`,
    ].join('\n'),
  );
}

/** A sentence about random rounds. */
export async function writeRounds(
  all: readonly Played<Round>[],
  { seed, tookMs }: { readonly seed: string; readonly tookMs: number },
): Promise<void> {
  const strikes = all.flatMap((one) => ('result' in one ? one.result.struck : []));
  await replace(
    'rounds',
    `Random rounds with seed ${seed}: ${verdict(all)} in ${minutes(tookMs)}; ${String(strikes.length)} interruptions.`,
  );
}

function verdict(all: readonly Played<unknown>[]): string {
  const broken = all.filter((one) => 'error' in one).length;
  return broken === 0
    ? `${String(all.length)} held`
    : `${String(broken)} of ${String(all.length)} broken`;
}

const minutes = (ms: number) => `${(ms / 60_000).toFixed(1)} min`;
const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;

function table(broken: ReadonlySet<string>): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [
    line(['killed', ...PHASES]),
    line(['---', ...PHASES.map(() => '---')]),
    ...ROWS.map(({ name, promises }) =>
      line([
        name,
        ...PHASES.map((phase: PhaseName) =>
          broken.has(`${name}/${phase}`) ? '**broken**' : spell(promises[phase]),
        ),
      ]),
    ),
  ].join('\n');
}

/** As short as a column wants it. */
function spell(promised: Promised): string {
  if (promised.kind === 'nothing') return '–';
  return 'codes' in promised ? `${promised.kind}: ${promised.codes.join(' or ')}` : promised.kind;
}

async function replace(part: Part, text: string): Promise<void> {
  const before = await readFile(FILE, 'utf8');
  const [begin, end] = [`<!-- ${part} -->`, `<!-- /${part} -->`];
  const from = before.indexOf(begin);
  const to = before.indexOf(end);
  if (from < 0 || to < from) throw new Error(`KILL-MATRIX.md has no part ${part}`);
  await writeFile(FILE, `${before.slice(0, from)}${begin}\n${text}\n${before.slice(to)}`);
}
