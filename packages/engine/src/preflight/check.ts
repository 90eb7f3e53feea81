/**
 * A check: one question about source, target or this host, asked before a clone.
 *
 * Checks run in stages, those of one stage at the same time. Each names what it needs of what earlier ones have found or
 * opened; one whose needs were not met is left out. So the same checks end a clone at the first error, and in a
 * preflight alone find all there is to find.
 */
import type { Notice } from '@pgcloned/contract';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import type { Claim } from '../target/claim.ts';
import type { Room } from '../target/space.ts';

/** What checks find or open, for later ones and for the clone. */
export interface Seen extends Omit<Ready, keyof Claim | 'promotion'> {
  readonly claim: Claim;
  readonly rooms: readonly Room[];
  /** With method reflink: the directories of the source that cannot share blocks with their place, and are copied. */
  readonly unshared: readonly string[];
  /** Of rsync on this host. */
  readonly rsyncVersion: string;
  /** How quickly files come from the source. */
  readonly link: LinkSpeed;
}

export interface LinkSpeed {
  readonly bytesPerSecond: number;
  readonly probedBytes: number;
}

export interface Findings {
  /** Rules the clone out. Whatever a check throws is one, too. */
  readonly error: (error: unknown) => void;
  readonly notice: (notice: Notice) => void;
}

type Look<Needed> = (
  run: CloneRun,
  seen: Needed,
  findings: Findings,
  // biome-ignore lint/suspicious/noConfusingVoidType: a check that only looks returns nothing
) => Promise<Partial<Seen> | void>;

export interface Check {
  readonly name: string;
  readonly needs: readonly (keyof Seen)[];
  readonly look: Look<Seen>;
}

export function check<Name extends keyof Seen>(
  name: string,
  needs: readonly Name[],
  look: Look<Pick<Seen, Name>>,
): Check {
  return { name, needs, look };
}

/** What became of one check. */
export interface Looked {
  readonly name: string;
  /** It could not be asked: what it needs is not there. */
  readonly leftOut: boolean;
  readonly errors: readonly unknown[];
  readonly notices: readonly Notice[];
}

/**
 * Runs all stages.
 *
 * @param heed Told of each stage when all its checks have ended, so that nothing that one of them opens is lost; what it
 *   throws ends it all.
 * @returns Everything that the checks have found; without an error it is complete.
 */
export async function runChecks(
  stages: readonly (readonly Check[])[],
  run: CloneRun,
  heed: (stage: readonly Looked[]) => void,
): Promise<Partial<Seen>> {
  let seen: Partial<Seen> = {};
  for (const stage of stages) {
    const before = seen;
    const ends = await Promise.all(stage.map(async (one) => await lookOnce(one, run, before)));
    for (const { found } of ends) seen = { ...seen, ...found };
    heed(ends.map(({ looked }) => looked));
  }
  return seen;
}

async function lookOnce(
  { name, needs, look }: Check,
  run: CloneRun,
  seen: Partial<Seen>,
): Promise<{ readonly looked: Looked; readonly found: Partial<Seen> }> {
  const errors: unknown[] = [];
  const notices: Notice[] = [];
  const leftOut = run.signal.aborted || needs.some((need) => seen[need] === undefined);
  let found: Partial<Seen> = {};
  if (!leftOut) {
    try {
      found =
        (await look(run, seen as Seen, {
          error: (error) => errors.push(error),
          notice: (notice) => notices.push(notice),
        })) ?? {};
    } catch (error) {
      errors.push(error);
    }
  }
  return { looked: { name, leftOut, errors, notices }, found };
}
