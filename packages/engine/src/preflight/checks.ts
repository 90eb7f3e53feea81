/**
 * All checks of a preflight, in their order. The target comes first, then the ways to the source, then what they show.
 *
 * None changes anything on either side. `CloneRun.locks` and connections are the run's, which also ends them.
 */
import { join } from 'node:path';
import { CloneError, changeRequest, formatServer, serversOf } from '@pgcloned/contract';
import {
  type ConnectionSettings,
  checkCollations,
  checkSource,
  findBinDirectory,
  openSession,
  probeReplication,
  readSourceFacts,
  type Session,
} from '@pgcloned/postgres';
import {
  localCompressions,
  localRsyncVersion,
  probeHost,
  rsyncVersionWarning,
} from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import { bytesIn } from '../copy/reconcile.ts';
import { tryTransport } from '../copy/transport.ts';
import { usableCompressions } from '../copy/usable-compressions.ts';
import { openDatabaseTunnel, removeDeadTunnels } from '../database-tunnel.ts';
import { findLocalServer } from '../local-source.ts';
import { pickServer } from '../pick-server.ts';
import { addressOf } from '../reach-database.ts';
import { choosePort } from '../replica/choose-port.ts';
import { clusterNameOf } from '../replica/configure.ts';
import { checkDatabaseLibraries } from '../replica/database-libraries.ts';
import { isDetached } from '../replica/detached.ts';
import { findHostConfiguration } from '../replica/host-configuration.ts';
import { checkOnReadyFiles } from '../replica/on-ready.ts';
import { checkOwnWay } from '../replica/own-way.ts';
import { removeBootDirectory } from '../replica/private-run.ts';
import { checkSettings } from '../replica/required-settings.ts';
import { notedSlot, putAwayNotedSlot, refuseExistingSlot } from '../replica/slot.ts';
import { OWN_HOST, openSourceHost } from '../source-host.ts';
import {
  type Claim,
  claimTablespaces,
  claimTarget,
  type TargetField,
  unknownLocations,
} from '../target/claim.ts';
import { refuseOtherSystem, refuseUnfitContents } from '../target/old-cluster.ts';
import { roomFor, type SpaceNeed, shortagesIn } from '../target/space.ts';
import { offerPlace, offerRoom } from './another-place.ts';
import { type Check, check, type Seen } from './check.ts';
import { findUnshared } from './find-unshared.ts';
import { install, installerHere } from './install.ts';
import { checkLocales } from './locales.ts';
import { measureLink } from './measure-link.ts';
import { libcVersion, missingPrograms, rsyncMissingHere } from './programs.ts';
import {
  formerServer,
  refuseOtherCluster,
  refuseSwitchedSource,
  refuseUnreadable,
} from './source-identity.ts';

const target = check('target', [], async (run, _seen, { error }) => {
  const { host, spec } = run.plan;
  const refused: Promise<unknown>[] = [];
  const offer = (thrown: unknown, field: TargetField) => {
    const asked = spec.target[field] ?? '';
    const asRequest = (other: string) => ({ target: { [field]: other } });
    refused.push(
      offerPlace(thrown, { asked, preferred: asked, dataRoots: host.dataRoots, asRequest }),
    );
  };
  const claim = await claimTarget(run, offer).catch((thrown: unknown) => {
    offer(thrown, 'dataDirectory');
    return null;
  });
  for (const one of await Promise.all(refused)) error(one);
  if (claim === null) return;
  // What a clone that runs has made would be there as well, and only its lock tells.
  if (!run.looksOnly) {
    await removeDeadTunnels(claim.data.final);
    await removeBootDirectory(claim.data.final);
  }
  return { claim };
});

const connection = check('connection', [], async ({ plan }) => {
  const { local, dataDirectory } = plan.source;
  if (local) {
    const server = await findLocalServer(dataDirectory ?? '', { originClone: plan.originClone });
    return { address: await addressOf(plan, server) };
  }
  const [only] = serversOf(plan.source);
  return plan.source.hosts === null && only !== undefined
    ? { address: await addressOf(plan, only) }
    : {};
});

const choice = check('choice', ['claim'], async (run, { claim }, { notice }) => {
  const { plan, observer } = run;
  if (plan.source.hosts === null) return;
  const { server, role, isFallback, passedOver } = await pickServer(run, {
    dataDirectory: ownDirectory(run, claim),
    former: await formerServer(run, claim.data),
  });
  const name = formatServer(server);
  observer.log('info', `the ${role} ${name} is copied`, passedOver);
  if (isFallback) {
    const reasons = Object.entries(passedOver).map(([other, why]) => `${other}: ${why}`);
    notice({
      code: 'SOURCE_FALLBACK',
      message: `no standby can be copied (${reasons.join('; ')}), so the primary ${name} is`,
      facts: passedOver,
    });
  }
  return { address: await addressOf(plan, server) };
});

const ssh = check('ssh', ['address'], async (run, { address }, { notice }) => {
  if (run.plan.source.local) return { host: OWN_HOST };
  const host = await openSourceHost(run, address);
  if (run.plan.source.ssh.insecure) {
    notice({
      code: 'HOST_KEY_UNCHECKED',
      message: `the host key of ${host.ssh().label} was not checked (ssh.insecure): whoever stands between can read and change what is copied`,
    });
  }
  return { host };
});

const direct = check('direct', ['address'], async ({ plan }, { address }) =>
  plan.source.ssh.tunnelDatabase ? {} : { settings: address },
);

const tunnel = check('tunnel', ['claim', 'address', 'host'], async (run, seen, { notice }) => {
  const { ssh: way, sslmode } = run.plan.source;
  if (!way.tunnelDatabase) return;
  if (sslmode.startsWith('verify-')) {
    notice({
      code: 'SSLMODE_NOT_IN_TUNNEL',
      message: `sslmode ${sslmode} does not hold inside the SSH tunnel: there the host key of ${seen.host.ssh().label} proves who answers, in place of a certificate`,
    });
  }
  return {
    settings: await openDatabaseTunnel(run, {
      host: seen.host,
      address: seen.address,
      dataDirectory: ownDirectory(run, seen.claim),
    }),
  };
});

const sql = check('sql', ['settings'], async (run, { settings }) => ({
  session: await openBackupSession(run, settings),
}));

const facts = check('facts', ['session'], async ({ signal }, { session }) => ({
  facts: await readSourceFacts(session, signal),
}));

const cluster = check('cluster', ['claim', 'settings', 'facts'], async (run, seen, { notice }) => {
  await refuseSwitchedSource(run, seen);
  const { takesOver, final } = seen.claim.data;
  if (!takesOver) return;
  for (const one of await refuseOtherSystem(final, seen.facts, run.signal)) notice(one);
});

const source = check('source', ['facts'], async ({ plan }, seen, findings) => {
  const { spec } = plan;
  const { errors, warnings } = checkSource(seen.facts, {
    walSenders: walSendersFor(plan),
    standbyName: isDetached(plan) ? null : clusterNameOf({ plan }),
    slot: spec.wal.retention === 'pin',
    replicaSlot: spec.replica.slot !== null,
  });
  for (const error of errors) findings.error(error);
  for (const warning of warnings) findings.notice(warning);
});

const collations = check('collations', ['facts'], async ({ signal }, { facts }, { notice }) => {
  for (const one of checkCollations(facts, await libcVersion(signal))) notice(one);
});

const slot = check('slot', ['claim', 'session'], async (run, seen) => {
  const slotName = run.plan.spec.replica.slot;
  if (slotName === null) return;
  // One that an earlier attempt has made is in nobody's use.
  const noted = await notedSlot(seen.claim.data.build);
  if (noted?.slotName === slotName) {
    if (run.looksOnly) return;
    await putAwayNotedSlot(run, noted, seen.claim.data);
  }
  await refuseExistingSlot(seen.session, slotName, run.signal);
});

const sourceHost = check('source-host', ['host', 'facts'], async ({ signal }, seen) => ({
  probe: await probeHost(seen.host.runner(), { dataDirectory: seen.facts.dataDirectory, signal }),
}));

const programs = check('programs', ['facts'], async ({ plan, signal }, seen) => ({
  binDirectory: await findBinDirectory(plan.host.postgresBin, seen.facts.major, signal, [
    ...(plan.spec.verification.boot ? ['pg_amcheck'] : []),
    ...(plan.source.onReady.length > 0 ? ['psql'] : []),
  ]),
}));

const onReady = check('on-ready', [], async ({ plan }) => {
  const { source, sourceName } = plan;
  if (source.onReady.length === 0) return;
  if (!isDetached(plan)) {
    throw new CloneError(
      'NOT_SUPPORTED',
      `source ${sourceName} has onReady files, so its clones cannot be standbys`,
      {
        facts: { source: sourceName, role: 'standby' },
        hint: 'Ask for replica.role: detached. In a standby the files could change nothing.',
        remedies: [changeRequest({ replica: { role: 'detached' } })],
      },
    );
  }
  await checkOnReadyFiles(source.onReady);
});

const replication = check('replication', ['settings'], async (run, { settings }) => {
  const { name, signal, plan } = run;
  if (walSendersFor(plan) > 0) await probeReplication(settings, { applicationName: name, signal });
});

const ownWay = check('own-way', ['settings'], async (run, seen, findings) => {
  if (!isDetached(run.plan)) await checkOwnWay(run, seen, findings);
});

const files = check('files', ['host', 'probe', 'facts'], async (run, seen, { error }) => {
  const { probe, facts } = seen;
  // Without the right to know it, which has been told, there is nothing to compare.
  const isKnown = facts.dataDirectory !== '';
  if (isKnown) refuseUnreadable(seen);
  for (const one of missingPrograms(run, seen)) error(one);
  if (isKnown) await refuseOtherCluster(run, probe, facts);
});

const rsync = check('rsync', ['probe'], async ({ plan }, { probe }, { notice }) => {
  if (plan.spec.method !== 'rsync') return;
  const message = rsyncVersionWarning(probe.rsyncVersion ?? '');
  if (message === null) return;
  const remedies = install(probe.installer, 'rsync', 'source');
  notice({ code: 'RSYNC_VULNERABLE', message, remedies });
});

const transport = check('transport', ['host', 'facts', 'probe'], async (run, seen) => {
  // Without them nothing could come, which has been said.
  const canCome = seen.probe.dataDirectoryReadable && seen.probe.rsyncVersion !== null;
  if (run.plan.spec.method !== 'rsync' || !canCome) return;
  const { dataDirectory } = seen.facts;
  await tryTransport(run, { ssh: seen.host.ssh(), dataDirectory });
});

const compression = check('compression', ['host', 'probe'], async ({ plan, signal }, seen) => {
  if (plan.spec.method !== 'rsync') return { compressions: [] };
  return {
    compressions: usableCompressions({
      asked: plan.spec.transfer.compression,
      here: await localCompressions(signal).catch(async (error: unknown) => {
        throw error instanceof CloneError && error.code === 'TOOL_MISSING'
          ? await rsyncMissingHere()
          : error;
      }),
      there: seen.probe.compressions,
      sourceHost: seen.host.host,
    }),
  };
});

const tablespaces = check(
  'tablespaces',
  ['claim', 'host', 'facts'],
  async (run, { claim, host, facts }, { error }) => {
    for (const unknown of unknownLocations(run, facts.tablespaces)) error(unknown);
    const sameHost = host.isHere;
    const { dataRoots } = run.plan.host;
    const refused: Promise<unknown>[] = [];
    const claimed = await claimTablespaces(run, claim, { ...facts, sameHost }, (thrown, source) => {
      const name = facts.tablespaces.find(({ location }) => location === source)?.name ?? 'other';
      refused.push(
        offerPlace(thrown, {
          asked: source,
          preferred: join(`${claim.data.final}-tablespaces`, name),
          dataRoots,
          asRequest: (other) => ({ target: { tablespaces: { [source]: other } } }),
        }),
      );
    });
    for (const one of await Promise.all(refused)) error(one);
    return { sameHost, tablespaces: claimed };
  },
);

const reflinks = check('reflinks', ['claim', 'facts', 'tablespaces'], findUnshared);

const contents = check('contents', ['claim', 'tablespaces'], async (_run, seen) => {
  for (const place of [seen.claim.data, seen.claim.wal, ...seen.tablespaces])
    if (place?.takesOver === true) await refuseUnfitContents(place.final);
});

const configuration = check('configuration', ['claim', 'facts'], async ({ plan }, seen) => {
  const { configuration: wanted } = plan.spec.replica;
  const dataDirectory = seen.claim.data.final;
  const hostConfiguration =
    wanted === 'source' ? null : await findHostConfiguration(dataDirectory, seen.facts.major);
  if (wanted === 'host' && hostConfiguration === null) {
    throw new CloneError(
      'TARGET_INVALID',
      'this host has no configuration for the data directory',
      {
        facts: { dataDirectory },
        hint: `Make one (/etc/postgresql/${String(seen.facts.major)}/NAME/postgresql.conf with data_directory = '${dataDirectory}'), or choose replica.configuration: auto.`,
      },
    );
  }
  return { hostConfiguration };
});

const settings = check(
  'settings',
  ['claim', 'facts', 'binDirectory', 'hostConfiguration'],
  checkSettings,
);

const locales = check('locales', ['facts', 'hostConfiguration'], checkLocales);

const port = check(
  'port',
  ['claim', 'facts', 'binDirectory', 'hostConfiguration', 'sameHost'],
  choosePort,
);

const space = check(
  'space',
  ['claim', 'facts', 'tablespaces', 'unshared'],
  async (run, seen, { error }) => {
    // Without the right to know how large it is, which has been told.
    if (seen.facts.databaseBytes === null) return;
    const rooms = await roomFor(await needsOf(run, seen), seen.facts.walSegmentBytes);
    // A later attempt waits for room where there is none.
    if (run.plan.attempt === 1)
      for (const shortage of shortagesIn(rooms)) error(await offerRoom(shortage, run.plan, seen));
    return { rooms };
  },
);

const sharing = check('sharing', ['sameHost'], async ({ plan }, { sameHost }, { notice }) => {
  if (!sameHost || isDetached(plan)) return;
  notice({
    code: 'TABLESPACES_SHARED',
    // R1.11
    message:
      'source and replica share a host: CREATE TABLESPACE on the source would make both use one directory',
  });
});

const rsyncHere = check('rsync-here', [], async ({ plan, signal }, _seen, { notice, error }) => {
  if (plan.spec.method !== 'rsync') return;
  const version = await localRsyncVersion(signal);
  if (version === null) {
    error(await rsyncMissingHere());
    return;
  }
  const message = rsyncVersionWarning(version);
  if (message !== null)
    notice({
      code: 'RSYNC_VULNERABLE',
      message: `Here: ${message}`,
      remedies: install(await installerHere(), 'rsync', 'host'),
    });
  return { rsyncVersion: version };
});

const link = check('link', ['host', 'session', 'facts', 'probe'], async (run, seen, { notice }) => {
  if (run.plan.spec.method !== 'rsync') return;
  const { dataDirectoryReadable, rsyncVersion, hasGnuFind } = seen.probe;
  // Else nothing could come, which has been told.
  const canCome = dataDirectoryReadable && rsyncVersion !== null && hasGnuFind;
  if (!canCome || seen.facts.dataDirectory === '') return {};
  const speed = await measureLink(run, seen);
  if (speed !== null) return { link: speed };
  notice({
    code: 'NOT_CHECKED',
    message: 'How quickly files come is not known: none came within two seconds.',
  });
  return {};
});

const libraries = check(
  'libraries',
  ['settings', 'session', 'facts', 'binDirectory', 'hostConfiguration'],
  checkDatabaseLibraries,
);

/** With method reflink nothing streams but the standby. */
function walSendersFor(plan: CloneRun['plan']): 0 | 1 | 2 {
  const ofStandby = isDetached(plan) ? 0 : 1;
  if (plan.spec.method === 'reflink') return ofStandby;
  return ofStandby === 0 ? 1 : 2;
}

/** What a clone would find out by itself, and only who asks before it wants to know. */
export const FURTHER_CHECKS: readonly (readonly Check[])[] = [[rsyncHere, link, libraries]];

export const CHECKS: readonly (readonly Check[])[] = [
  [target, onReady],
  [connection, choice],
  [ssh, direct],
  [tunnel],
  [sql],
  [facts],
  [cluster, source, collations],
  [slot],
  [sourceHost, programs, replication],
  // Not beside the other connection to a WAL sender: there may be one for both of them.
  [files, rsync, compression, ownWay],
  [transport],
  [tablespaces],
  [contents, reflinks],
  [configuration],
  [settings, locales, port],
  [space],
  [sharing],
];

async function needsOf(
  { plan }: CloneRun,
  {
    claim: { data, temporaryWalDirectory },
    facts,
    tablespaces,
    unshared,
  }: Pick<Seen, 'claim' | 'facts' | 'tablespaces' | 'unshared'>,
): Promise<readonly SpaceNeed[]> {
  const needOf = async (source: string, path: string, bytes: number): Promise<SpaceNeed> => {
    const isSent = plan.spec.method === 'rsync' || unshared.includes(source);
    return { path, bytes: isSent ? bytes - (await bytesIn(path)) : 0 };
  };
  return [
    await needOf(facts.dataDirectory, data.build, facts.databaseBytes ?? 0),
    ...(await Promise.all(
      tablespaces.map(async ({ build, oid, source: location }) => {
        const bytes = facts.tablespaces.find((one) => one.oid === oid)?.bytes ?? 0;
        return await needOf(location, build, bytes);
      }),
    )),
    // Nobody knows how much WAL there will be; there has to be room for some.
    { path: temporaryWalDirectory, bytes: 0 },
  ];
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

/** Beside the lock of what tunnels lie. Without the lock another clone of the target would remove them. */
const ownDirectory = ({ looksOnly }: CloneRun, { data }: Claim) => (looksOnly ? null : data.final);
