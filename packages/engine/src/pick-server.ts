/**
 * Which of the servers of a source is copied (`hosts`, `prefer`, `maxLagBytes`).
 *
 * All are asked at the same time, through the tunnel if there is one, and whoever does not answer is passed over. `primary`
 * never means a standby. `standby` means the first in the order of the configuration that is close enough to the primary, and
 * the primary if there is none. How far a standby is behind the primary itself tells; where none can be reached the
 * standby knows it as long as it streams, and one that does not is passed over, since nobody knows.
 *
 * Whoever is on an older timeline than another one was left behind by a promotion: it is not picked, be it a primary. Nor is
 * a server whose host lets nobody in by SSH, since no file would come from it.
 *
 * Every attempt picks again: after a failover it is another server. The one that was copied from before is kept if it fits,
 * since what it has sent need not be compared by content then; so is the primary that had to stand in for a standby.
 */
import {
  CloneError,
  formatBytes,
  formatServer,
  type ServerAddress,
  serversOf,
} from '@pgcloned/contract';
import { readServerState, type ServerState, walBytesBetween } from '@pgcloned/postgres';
import { together } from '@pgcloned/process';
import { withCleanup } from './cleanup.ts';
import type { CloneRun } from './clone-run.ts';
import { reachDatabase } from './reach-database.ts';
import { openSourceHost } from './source-host.ts';

/** Less than a busy primary writes in a minute; what a standby lacks is streamed to the clone in any case. */
const MAX_LAG_BYTES = 256 * 1024 * 1024;

export interface PickedServer {
  readonly server: ServerAddress;
  readonly role: 'primary' | 'standby';
  /** Whether a standby was asked for and none is to be had. */
  readonly isFallback: boolean;
  /** Why the others were not picked, by their names. */
  readonly passedOver: Readonly<Record<string, string>>;
}

/** What became of asking one server. */
export interface Candidate {
  readonly server: ServerAddress;
  readonly answer: ServerState | CloneError;
  /** Why its host cannot be reached, although its database answers. */
  readonly hostFailure?: CloneError;
}

/** What was copied before. */
export interface FormerServer {
  readonly name: string;
  /** The timeline of what was copied; null: by another clone, which may have asked for something else. */
  readonly timeline: number | null;
}

/**
 * Asks all servers and chooses.
 *
 * @param o.former Null: nothing was copied before.
 * @throws What `chooseServer` throws.
 */
export async function pickServer(
  run: Pick<CloneRun, 'plan' | 'name' | 'signal'>,
  o: { readonly dataDirectory: string | null; readonly former: FormerServer | null },
): Promise<PickedServer> {
  const { source } = run.plan;
  let candidates: readonly Candidate[] = await together<Candidate[]>(
    serversOf(source).map(async (server): Promise<Candidate> => {
      try {
        return { server, answer: await askServer(run, server, o.dataDirectory) };
      } catch (error) {
        run.signal.throwIfAborted();
        if (!(error instanceof CloneError)) throw error;
        return { server, answer: error };
      }
    }),
  );
  for (;;) {
    const picked = chooseServer(candidates, {
      prefer: source.prefer ?? 'primary',
      maxLagBytes: source.maxLagBytes ?? MAX_LAG_BYTES,
      former: o.former,
    });
    const hostFailure = await tryHost(run, picked.server);
    if (hostFailure === null) return picked;
    candidates = candidates.map((one) =>
      one.server === picked.server ? { ...one, hostFailure } : one,
    );
  }
}

/** Of one server alone: a host that drops packets takes its time to say nothing. Behind a tunnel it has answered already. */
async function tryHost(
  { plan, signal }: Pick<CloneRun, 'plan' | 'signal'>,
  server: ServerAddress,
): Promise<CloneError | null> {
  if (plan.source.ssh.tunnelDatabase) return null;
  try {
    await withCleanup(
      async (cleanup) => {
        await openSourceHost({ plan, signal, cleanup }, server);
      },
      () => {},
    );
    return null;
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof CloneError)) throw error;
    return error;
  }
}

async function askServer(
  { plan, name, signal }: Pick<CloneRun, 'plan' | 'name' | 'signal'>,
  server: ServerAddress,
  dataDirectory: string | null,
): Promise<ServerState> {
  return await withCleanup(
    async (cleanup) => {
      const settings = await reachDatabase({ plan, signal, cleanup }, { server, dataDirectory });
      return await readServerState(settings, { applicationName: name, signal });
    },
    // A socket of a tunnel at the most, which the next clone of the directory removes.
    () => {},
  );
}

/**
 * @throws {CloneError} `SOURCE_MISMATCH` if they are of different clusters, or two of them primaries; what they all have in
 *   common, or else `SOURCE_UNREACHABLE`, if none can be copied. Each is named with its reason.
 */
export function chooseServer(
  candidates: readonly Candidate[],
  {
    prefer,
    maxLagBytes,
    former,
  }: {
    readonly prefer: 'primary' | 'standby';
    readonly maxLagBytes: number;
    readonly former: FormerServer | null;
  },
): PickedServer {
  const answered = candidates.flatMap(({ server, answer, hostFailure }) =>
    answer instanceof CloneError
      ? []
      : [{ server, name: formatServer(server), state: answer, isReachable: !hostFailure }],
  );
  refuseDifferentClusters(answered);
  const primaries = answered.filter(({ state }) => !state.inRecovery);
  refuseTwoPrimaries(primaries);
  const timeline = Math.max(...answered.map(({ state }) => state.timeline));
  const primary = primaries.find(({ state }) => state.timeline === timeline);

  const whyNot: Record<string, string> = {};
  for (const { server, answer, hostFailure } of candidates) {
    const unfit =
      answer instanceof CloneError
        ? answer.message
        : (hostFailure?.message ??
          unfitness(answer, { prefer, maxLagBytes, timeline, primary: primary?.state ?? null }));
    if (unfit !== null) whyNot[formatServer(server)] = unfit;
  }
  const fits = answered.filter(({ name }) => whyNot[name] === undefined);
  const standIn = primary?.isReachable === true ? primary : undefined;
  const isGoneOnWith = standIn?.name === former?.name && former?.timeline === timeline;
  const picked =
    fits.find(({ name }) => name === former?.name) ?? (isGoneOnWith ? standIn : fits[0]) ?? standIn;
  if (picked === undefined) throw noneFits(candidates, prefer, whyNot);
  for (const { name } of fits) whyNot[name] ??= 'another one comes first';
  const { [picked.name]: _, ...passedOver } = whyNot;
  return {
    server: picked.server,
    role: picked.state.inRecovery ? 'standby' : 'primary',
    isFallback: prefer === 'standby' && fits.length === 0,
    passedOver,
  };
}

/** @returns Null if a server may be picked for what is preferred. */
function unfitness(
  state: ServerState,
  {
    prefer,
    maxLagBytes,
    timeline,
    primary,
  }: {
    readonly prefer: 'primary' | 'standby';
    readonly maxLagBytes: number;
    /** The newest of all. */
    readonly timeline: number;
    readonly primary: ServerState | null;
  },
): string | null {
  if (state.timeline !== timeline) {
    // What it has may not be part of the newer history.
    const where = `timeline ${String(state.timeline)}, and the ${primary === null ? 'newest is' : 'primary on'} ${String(timeline)}`;
    return state.inRecovery
      ? `it is on ${where}`
      : `it is a primary that a promotion has left behind, on ${where}`;
  }
  if (prefer === 'primary') return state.inRecovery ? 'it is a standby' : null;
  if (!state.inRecovery) return 'it is the primary';
  const head = primary === null ? state.upstreamLsn : primary.lsn;
  if (head === null)
    return 'nobody knows how far it is behind: no primary can be reached, and it does not stream';
  if (state.lsn === null) return 'it has replayed nothing yet';
  const lagBytes = Number(walBytesBetween({ from: state.lsn, to: head }));
  return lagBytes <= maxLagBytes
    ? null
    : `it is ${formatBytes(lagBytes)} behind, and maxLagBytes is ${String(maxLagBytes)}`;
}

interface Answered {
  readonly name: string;
  readonly state: ServerState;
}

function refuseDifferentClusters(answered: readonly Answered[]): void {
  const identifiers = new Set(answered.map(({ state }) => state.systemIdentifier));
  if (identifiers.size <= 1) return;
  const names = answered.map(
    ({ name, state }) => `${name} is of cluster ${state.systemIdentifier}`,
  );
  throw new CloneError(
    'SOURCE_MISMATCH',
    `the hosts of the source belong to different clusters: ${names.join(', ')}`,
    {
      facts: Object.fromEntries(answered.map(({ name, state }) => [name, state.systemIdentifier])),
      hint: 'Take those that belong to another cluster out of `hosts`.',
    },
  );
}

/** After a failover without fencing nobody but an administrator can say which of them counts. */
function refuseTwoPrimaries(primaries: readonly Answered[]): void {
  if (primaries.length <= 1) return;
  const names = primaries.map(({ name, state }) => `${name} on timeline ${String(state.timeline)}`);
  throw new CloneError(
    'SOURCE_MISMATCH',
    `more than one of the hosts is a primary: ${names.join(', ')}`,
    {
      facts: Object.fromEntries(primaries.map(({ name, state }) => [name, state.timeline])),
      hint: 'Stop the one that must not take writes, or take it out of `hosts`.',
    },
  );
}

function noneFits(
  candidates: readonly Candidate[],
  prefer: 'primary' | 'standby',
  whyNot: Readonly<Record<string, string>>,
): CloneError {
  const failures = candidates.flatMap(({ answer, hostFailure }) =>
    answer instanceof CloneError ? [answer] : (hostFailure ?? []),
  );
  const codes = new Set(failures.map(({ code }) => code));
  const [first] = failures;
  // A standby is no primary, whatever is mended.
  const wanted = candidates.filter(
    ({ answer }) => prefer === 'standby' || answer instanceof CloneError || !answer.inRecovery,
  );
  const isCommon = failures.length === wanted.length && codes.size === 1;
  const reasons = Object.entries(whyNot).map(([name, why]) => `${name}: ${why}`);
  return new CloneError(
    isCommon && first !== undefined ? first.code : 'SOURCE_UNREACHABLE',
    `none of the hosts can be copied as ${prefer === 'primary' ? 'primary' : 'standby or primary'}: ${reasons.join('; ')}`,
    {
      facts: whyNot,
      hint:
        (isCommon ? first?.hint : null) ??
        'See why each of them was passed over; after a failover it may be enough to wait.',
      remedies: (isCommon ? first?.remedies : null) ?? [],
    },
  );
}
