/**
 * Phase 1 of 8: is a clone possible, and may it be made?
 *
 * Promises: nothing is changed on either side. When it returns, source and target are known and fit, the directories of
 * the target are locked, and the control connection and the backup session are open. The target comes first: a clone
 * that may not be written needs no source.
 */

import { CloneError } from '@pgcloned/contract';
import {
  type ConnectionSettings,
  checkSource,
  findBinDirectory,
  openSession,
  parsePostmasterPid,
  probeReplication,
  readSourceFacts,
  resolveConnection,
  type Session,
  type SourceFacts,
} from '@pgcloned/postgres';
import { type HostProbe, probeHost, rsyncVersionWarning } from '@pgcloned/rsync';
import { type CloneRun, together } from '../clone-run.ts';
import { copiedCluster } from '../copy/journal.ts';
import { bytesIn } from '../copy/reconcile.ts';
import { isOwnAddress } from '../own-address.ts';
import type { Ready } from '../ready.ts';
import { findHostConfiguration } from '../replica/host-configuration.ts';
import { refuseUnfitSettings } from '../replica/required-settings.ts';
import { dropSlot, notedSlot, refuseExistingSlot } from '../replica/slot.ts';
import { openSourceHost } from '../source-host.ts';
import {
  type Claim,
  claimTablespaces,
  claimTarget,
  refuseUnknownLocations,
} from '../target/claim.ts';
import { readMarker } from '../target/marker.ts';
import { refuseOtherSystem, refuseUnfitContents } from '../target/old-cluster.ts';
import { refuseIfTooLarge, type SpaceNeed } from '../target/space.ts';

export async function preflight(run: CloneRun): Promise<Ready> {
  const { plan, signal } = run;
  const { source, spec } = plan;
  refuseUnsupportedSource(run);
  const claim = await claimTarget(run);

  const settings = await resolveConnection(
    source,
    plan.password === null ? {} : { password: plan.password },
  );
  const [host, session] = await together([openSourceHost(run), openBackupSession(run, settings)]);
  const facts = await readSourceFacts(session, signal);
  await refuseSwitchedSource(run, claim, facts);
  if (claim.data.takesOver) {
    for (const warning of await refuseOtherSystem(claim.data.final, facts, signal))
      run.warn(warning);
  }
  const { errors, warnings } = checkSource(facts, {
    slot: spec.wal.retention === 'pin',
    replicaSlot: spec.replica.slot !== null,
  });
  for (const error of errors.slice(1))
    run.observer.log('error', error.message, { code: error.code, hint: error.hint });
  if (errors[0] !== undefined) throw errors[0];
  for (const warning of warnings) run.warn(warning);
  if (spec.replica.slot !== null) {
    // One that an earlier attempt has made is in nobody's use.
    const slotName = spec.replica.slot;
    if ((await notedSlot(claim.data.build)) === slotName)
      await dropSlot(settings, { slotName, applicationName: run.name, signal });
    await refuseExistingSlot(session, slotName, signal);
  }

  const [probe, binDirectory] = await together([
    probeHost(host.ssh(), { dataDirectory: facts.dataDirectory, signal }),
    findBinDirectory(plan.host.postgresBin, facts.major, signal),
    probeReplication(settings, { applicationName: run.name, signal }),
  ]);
  refuseUnfitHost(run, probe, facts);
  refuseOtherCluster(run, probe, facts);
  const rsyncWarning = rsyncVersionWarning(probe.rsyncVersion ?? '');
  if (rsyncWarning !== null) run.warn(rsyncWarning);

  refuseUnknownLocations(run, facts.tablespaces);
  const sameHost = isOwnAddress(host.ssh().remoteAddress);
  const tablespaces = await claimTablespaces(run, claim, { ...facts, sameHost });
  for (const place of [claim.data, claim.wal, ...tablespaces])
    if (place?.takesOver === true) await refuseUnfitContents(place.final);
  const hostConfiguration =
    spec.replica.configuration === 'source'
      ? null
      : await findHostConfiguration(claim.data.final, facts.major);
  if (spec.replica.configuration === 'host' && hostConfiguration === null) {
    throw new CloneError(
      'TARGET_INVALID',
      'this host has no configuration for the data directory',
      {
        facts: { dataDirectory: claim.data.final },
        hint: `Make one (/etc/postgresql/${String(facts.major)}/NAME/postgresql.conf with data_directory = '${claim.data.final}'), or choose replica.configuration: auto.`,
      },
    );
  }
  const ready: Ready = {
    ...claim,
    host,
    session,
    settings,
    facts,
    probe,
    binDirectory,
    tablespaces,
    hostConfiguration,
    sameHost,
  };
  await refuseUnfitSettings(run, ready);
  // A later attempt waits for room where there is none.
  if (plan.attempt === 1) await refuseIfTooLarge(await needsOf(ready), facts.walSegmentBytes);
  if (ready.sameHost && spec.replica.role !== 'detached') {
    run.warn(
      // R1.11
      'source and replica share a host: CREATE TABLESPACE on the source would make both use one directory',
    );
  }
  return ready;
}

/** Behind the address of a source another cluster may answer by now: what was copied is of no use for it. */
async function refuseSwitchedSource(
  { plan }: CloneRun,
  { data }: Claim,
  { systemIdentifier }: SourceFacts,
): Promise<void> {
  const copied = await copiedCluster(data.build);
  if (copied === null || copied === systemIdentifier) return;
  // That of another clone that did not end well makes room for this one.
  if ((await readMarker(data.build, 'data'))?.cloneId !== plan.id) return;
  const { host, port } = plan.source;
  throw new CloneError(
    'TARGET_OTHER_CLUSTER',
    `the clone was begun from cluster ${copied}, and at ${host}:${String(port)} is cluster ${systemIdentifier} now`,
    {
      facts: {
        path: data.build,
        systemIdentifier: copied,
        systemIdentifierOfSource: systemIdentifier,
      },
      hint: 'See where the address of the source leads. If the other cluster is meant, clone again.',
    },
  );
}

async function needsOf({
  data,
  facts,
  tablespaces,
  temporaryWalDirectory,
}: Ready): Promise<readonly SpaceNeed[]> {
  return [
    { path: data.build, bytes: (facts.databaseBytes ?? 0) - (await bytesIn(data.build)) },
    ...(await Promise.all(
      tablespaces.map(async ({ build, oid }) => ({
        path: build,
        bytes:
          (facts.tablespaces.find((one) => one.oid === oid)?.bytes ?? 0) - (await bytesIn(build)),
      })),
    )),
    // Nobody knows how much WAL there will be; there has to be room for some.
    { path: temporaryWalDirectory, bytes: 0 },
  ];
}

function refuseUnsupportedSource({ plan }: CloneRun): void {
  if (!plan.source.ssh.tunnelDatabase) return;
  throw new CloneError('NOT_SUPPORTED', 'ssh.tunnelDatabase: true is not supported', {
    facts: { source: plan.sourceName },
    hint: 'Let the worker reach the port of the database directly.',
  });
}

async function openBackupSession(
  { name, signal, cleanup, watch }: CloneRun,
  settings: ConnectionSettings,
): Promise<Session> {
  const session = await openSession(settings, { applicationName: name, signal });
  const unwatch = watch(session.lost);
  cleanup.always({
    what: `session ${name} on ${settings.host}:${String(settings.port)}`,
    remedy: `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '${name}'`,
    undo: async () => {
      unwatch();
      await session[Symbol.asyncDispose]();
    },
  });
  return session;
}

function refuseUnfitHost({ plan }: CloneRun, probe: HostProbe, facts: SourceFacts): void {
  const host = plan.source.ssh.host ?? plan.source.host;
  if (!probe.dataDirectoryReadable) {
    throw new CloneError(
      'SOURCE_RIGHTS_MISSING',
      `${probe.user} cannot read ${facts.dataDirectory} on ${host}`,
      {
        facts: { user: probe.user, dataDirectory: facts.dataDirectory },
        hint: 'Connect as the operating system user that owns the cluster (ssh.user), usually postgres, and to the right host.',
      },
    );
  }
  if (probe.rsyncVersion === null || !probe.hasGnuFind) {
    const program = probe.rsyncVersion === null ? 'rsync' : 'GNU find';
    throw new CloneError('TOOL_MISSING', `${program} is not installed on ${host}`, {
      facts: { program, host },
      hint: `Install it there: apt-get install ${program === 'rsync' ? 'rsync' : 'findutils'}.`,
    });
  }
}

/** Time between the start of the process and the moment that pg_postmaster_start_time() reports (R11.2). */
const START_TIME_TOLERANCE_SECONDS = 60;

/** R11.2, as far as it can be told before the pin: do SQL and SSH lead to one cluster? */
function refuseOtherCluster({ plan }: CloneRun, probe: HostProbe, facts: SourceFacts): void {
  const postmaster = parsePostmasterPid(probe.postmasterPid);
  // The server names it without a slash at the end.
  const configured = plan.source.dataDirectory?.replace(/(.)\/+$/, '$1') ?? null;
  const startedSecondsApart = Math.abs(
    Date.parse(facts.startedAt) / 1000 - (postmaster?.startedAtSeconds ?? 0),
  );
  const isSame =
    postmaster?.dataDirectory === facts.dataDirectory &&
    postmaster.port === facts.port &&
    startedSecondsApart <= START_TIME_TOLERANCE_SECONDS &&
    (configured === null || configured === facts.dataDirectory);
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
