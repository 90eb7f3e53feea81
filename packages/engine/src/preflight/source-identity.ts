/** Whether what is reached is the cluster that is meant, by SQL, by SSH and between two attempts. */
import { realpath } from 'node:fs/promises';
import { CloneError, formatServer } from '@pgcloned/contract';
import { parsePostmasterPid, promoted, type SourceFacts } from '@pgcloned/postgres';
import type { HostProbe } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import { copiedBefore } from '../copy/journal.ts';
import type { FormerServer } from '../pick-server.ts';
import type { Claim } from '../target/claim.ts';
import { readMarker } from '../target/marker.ts';
import type { Seen } from './check.ts';

/**
 * What the clone was begun from is another now: its address leads elsewhere, or time has gone on there.
 *
 * @throws {CloneError} `TARGET_OTHER_CLUSTER`, `SOURCE_MISMATCH`, or that of {@link promoted}.
 */
export async function refuseSwitchedSource(
  { plan }: CloneRun,
  {
    claim: { data },
    settings,
    facts: { systemIdentifier, inRecovery, timeline },
  }: Pick<Seen, 'claim' | 'settings' | 'facts'>,
): Promise<void> {
  // Between two attempts nobody watched.
  if (plan.begunFrom === 'standby' && !inRecovery && plan.source.hosts === null)
    throw promoted({ settings });
  const copied = await copiedBefore(data.build);
  // That of another clone that did not end well makes room for this one.
  if (copied === null || !(await isOwn(plan, data))) return;
  const where = formatServer(settings);
  if (copied.systemIdentifier !== systemIdentifier) {
    throw new CloneError(
      'TARGET_OTHER_CLUSTER',
      `the clone was begun from cluster ${copied.systemIdentifier}, and at ${where} is cluster ${systemIdentifier} now`,
      {
        facts: {
          path: data.build,
          systemIdentifier: copied.systemIdentifier,
          systemIdentifierOfSource: systemIdentifier,
        },
        hint: 'See where the address of the source leads. If the other cluster is meant, clone again.',
      },
    );
  }
  // A standby tells the timeline of its last restartpoint, and may be further.
  if (inRecovery || timeline >= copied.timeline) return;
  throw new CloneError(
    'SOURCE_MISMATCH',
    `the clone was begun on timeline ${String(copied.timeline)}, and at ${where} is a primary on ${String(timeline)} now, which a promotion has left behind`,
    {
      facts: { timeline: copied.timeline, timelineOfSource: timeline },
      hint: 'Stop that one, and see that the address of the source leads to the primary that counts. If it is meant all the same, clone again.',
    },
  );
}

async function isOwn({ id }: CloneRun['plan'], { build }: Claim['data']): Promise<boolean> {
  return (await readMarker(build, 'data'))?.cloneId === id;
}

/** The server that an unfinished clone in the target was begun from, or null. */
export async function formerServer(
  { plan }: CloneRun,
  data: Claim['data'],
): Promise<FormerServer | null> {
  const copied = await copiedBefore(data.build);
  if (copied === null) return null;
  return { name: copied.server, timeline: (await isOwn(plan, data)) ? copied.timeline : null };
}

/** @throws {CloneError} `SOURCE_RIGHTS_MISSING`. */
export function refuseUnreadable({
  host: { host },
  probe,
  facts,
}: Pick<Seen, 'host' | 'probe' | 'facts'>): void {
  if (probe.dataDirectoryReadable) return;
  throw new CloneError(
    'SOURCE_RIGHTS_MISSING',
    `${probe.user} cannot read ${facts.dataDirectory} on ${host}`,
    {
      facts: { user: probe.user, dataDirectory: facts.dataDirectory },
      hint: 'Connect as the operating system user that owns the cluster (ssh.user), usually postgres, and to the right host.',
    },
  );
}

/** Time between the start of the process and the moment that pg_postmaster_start_time() reports (R11.2). */
const START_TIME_TOLERANCE_SECONDS = 60;

/**
 * R11.2, as far as it can be told before the pin: do SQL and SSH lead to one cluster?
 *
 * @throws {CloneError} `SOURCE_MISMATCH`.
 */
export async function refuseOtherCluster(
  { plan }: CloneRun,
  probe: HostProbe,
  facts: SourceFacts,
): Promise<void> {
  const postmaster = parsePostmasterPid(probe.postmasterPid);
  // The server names it without a slash at the end.
  const configured = plan.source.dataDirectory?.replace(/(.)\/+$/, '$1') ?? null;
  const isConfigured =
    configured === null ||
    configured === facts.dataDirectory ||
    // Of what lies here it counts where a path leads.
    (plan.source.local && (await realpath(configured)) === (await realpath(facts.dataDirectory)));
  const startedSecondsApart = Math.abs(
    Date.parse(facts.startedAt) / 1000 - (postmaster?.startedAtSeconds ?? 0),
  );
  const isSame =
    postmaster?.dataDirectory === facts.dataDirectory &&
    postmaster.port === facts.port &&
    startedSecondsApart <= START_TIME_TOLERANCE_SECONDS &&
    isConfigured;
  if (isSame) return;
  throw new CloneError('SOURCE_MISMATCH', 'SQL and SSH lead to different clusters', {
    facts: {
      dataDirectoryBySql: facts.dataDirectory,
      dataDirectoryByPidFile: postmaster?.dataDirectory ?? null,
      dataDirectoryConfigured: configured,
      portBySql: facts.port,
      portByPidFile: postmaster?.port ?? null,
      startedBySql: facts.startedAt,
      startedByPidFile: postmaster?.startedAtSeconds ?? null,
    },
    hint: 'Check host, port, ssh.host and dataDirectory of the source.',
  });
}
