/**
 * Phase 4 of 8: the files of PGDATA and of every tablespace come over, while the source goes on writing them.
 *
 * Promises: every file that the listing after the start of the backup shows, and that recovery needs, is here; what came
 * later comes through WAL (R1.16). pg_control is not among them (R2.5), so nothing here can be started. Everything is on
 * its way to the disk already: the filesystems are synced again and again while the copy goes on, or the sync at the end
 * would take as long again.
 */
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { readTablespaces } from '@pgcloned/postgres';
import { listFiles, type RsyncDaemon, startDaemon, sweepHost, transfer } from '@pgcloned/rsync';
import { type CloneRun, together } from '../clone-run.ts';
import { queueBatches } from '../copy/batches.ts';
import { makeDirectories } from '../copy/directories.ts';
import { copyAll } from '../copy/pool.ts';
import { startRateRelay } from '../copy/rate-relay.ts';
import { type Selection, selectDataDirectory, selectTablespace } from '../copy/select.ts';
import type { Ready } from '../ready.ts';
import { repeat } from '../repeat.ts';
import { claimTablespaces } from '../target/claim.ts';
import type { TablespacePlace } from '../target/layout.ts';
import { refuseIfTooLarge } from '../target/space.ts';
import { syncFilesystems } from '../target/sync.ts';
import { prepareClonePlace } from './stream-wal.ts';

const WORKERS_MAX_BY_DEFAULT = 8;
/** Short, so that the disk is never idle and the last sync finds little to do. */
const SYNC_INTERVAL_MS = 700;

export interface Copy {
  readonly bytes: number;
  readonly files: number;
  readonly wireBytes: number;
  /** The tablespaces that were copied: the set at the start of the backup (R1.9). */
  readonly tablespaces: readonly TablespacePlace[];
}

interface Root {
  readonly module: string;
  readonly source: string;
  readonly destination: string;
}

export async function copyFiles(run: CloneRun, ready: Ready): Promise<Copy> {
  const { signal, observer, plan } = run;
  const workers =
    plan.spec.transfer.workers ?? Math.min(availableParallelism(), WORKERS_MAX_BY_DEFAULT);
  const tablespaces = await tablespacesNow(run, ready);
  const roots = rootsOf(ready, tablespaces);
  const [listings, daemon] = await together([
    listFiles(ready.ssh, { roots: roots.map(({ source }) => source), signal }),
    openDaemon(run, ready, roots, workers),
    sweepSource(run, ready),
  ]);
  const selections = roots.map(({ source }, index) => {
    const entries = listings[index] ?? null;
    // A version directory that nobody has written into yet may be missing (R1.8); PGDATA may not.
    if (entries === null && index > 0) return { files: [], directories: [] };
    if (entries === null) throw vanished(source);
    return index === 0
      ? selectDataDirectory(entries, {
          tablespacesInside: inside(ready, tablespaces),
          logDirectory: relativeLogDirectory(ready),
        })
      : selectTablespace(entries);
  });
  await refuseIfTooLarge(
    roots.map(({ destination }, index) => ({
      path: destination,
      bytes: (selections[index]?.files ?? []).reduce((sum, { bytes }) => sum + bytes, 0),
    })),
  );
  for (const place of tablespaces) await prepareClonePlace(run, ready, place);
  await makeAllDirectories(roots, selections, ready.facts.dataDirectoryMode);

  const queue = queueBatches(
    selections.map(({ files }) => files),
    { workers },
  );
  observer.copyPlanned({ bytesTotal: queue.bytesTotal, filesTotal: queue.filesTotal, workers });
  await using relay =
    plan.spec.transfer.maxRate === null
      ? null
      : await startRateRelay({ to: daemon, bytesPerSecond: plan.spec.transfer.maxRate });
  const syncing = repeat(
    SYNC_INTERVAL_MS,
    async () => {
      await syncFilesystems(
        roots.map(({ destination }) => destination),
        signal,
      );
    },
    (error) => {
      // The sync in `publish` decides; this one only begins early.
      observer.log('debug', 'a sync during the copy failed', { reason: String(error) });
    },
  );
  try {
    const copied = await copyAll(queue, {
      workers,
      signal,
      copied: (step) => {
        observer.copied(step);
      },
      log: (level, message, fields) => {
        observer.log(level, message, fields);
      },
      transfer: async (batch, { repeat: why, onBytes, signal: batchSignal }) => {
        const root = roots[batch.root];
        if (root === undefined) throw new Error('a batch without a root');
        const again = why === 'changed' ? 'ignore-times' : 'quick';
        return await transfer({
          endpoint: relay ?? daemon,
          daemon,
          module: root.module,
          names: batch.names,
          destination: root.destination,
          compression:
            plan.spec.transfer.compression === 'auto' ? 'none' : plan.spec.transfer.compression,
          compare: plan.spec.transfer.checksum ? 'checksum' : again,
          timeoutMs: plan.host.stallMs,
          inheritedFds: ready.lockFds,
          onBytes,
          signal: batchSignal,
        });
      },
    });
    return { ...copied, files: queue.filesTotal, tablespaces };
  } finally {
    await syncing.stop();
    await endDaemon(run, daemon);
  }
}

/** The set at this moment, which is after the start of the backup (R1.9). */
async function tablespacesNow(run: CloneRun, ready: Ready): Promise<readonly TablespacePlace[]> {
  const now = await readTablespaces(ready.session, run.signal);
  const known = new Map(ready.tablespaces.map((place) => [place.oid, place]));
  const added = now.filter(({ oid, location }) => known.get(oid)?.source !== location);
  const places = await claimTablespaces(run, ready, {
    ...ready.facts,
    tablespaces: added,
    sameHost: ready.sameHost,
  });
  return [
    ...ready.tablespaces.filter(({ oid, source }) =>
      now.some((one) => one.oid === oid && one.location === source),
    ),
    ...places,
  ];
}

/** R1.8: of a tablespace only the version directory; each root is a module of its own. */
function rootsOf(ready: Ready, tablespaces: readonly TablespacePlace[]): readonly Root[] {
  return [
    { module: 'pgdata', source: ready.facts.dataDirectory, destination: ready.data.build },
    ...tablespaces.map(({ oid, source, build }) => ({
      module: `tablespace-${oid}`,
      source: join(source, ready.facts.tablespaceDirectoryName),
      destination: build,
    })),
  ];
}

async function openDaemon(
  run: CloneRun,
  ready: Ready,
  roots: readonly Root[],
  workers: number,
): Promise<RsyncDaemon> {
  const { rsyncd } = run.plan.source;
  const [first = 0, last = 0] = rsyncd.ports.split('-').map(Number);
  const daemon = await startDaemon(ready.ssh, {
    name: run.name,
    modules: roots.map(({ module, source }) => ({ name: module, path: source })),
    connectAddress: rsyncd.address ?? ready.ssh.remoteAddress,
    bindAddress: rsyncd.address,
    ports: { first, last },
    // Two more than can be in use, for a connection that the other side has not yet seen end (R6.13).
    connectionsMax: workers + 2,
    leaseMs: run.plan.host.leaseMs,
    directory: ready.temporaryWalDirectory,
    signal: run.signal,
  });
  const unwatch = run.watch(daemon.lost);
  run.cleanup.always({
    what: `rsync daemon ${run.name} on ${ready.ssh.label}`,
    remedy: `It ends by itself within ${String(run.plan.host.leaseMs / 1000)} s.`,
    undo: async (signal) => {
      unwatch();
      await daemon.stop(signal);
    },
  });
  return daemon;
}

/** What engines left there that died together with the guards of their leases. Not needed for this clone. */
async function sweepSource({ observer, signal }: CloneRun, { ssh }: Ready): Promise<void> {
  try {
    for (const name of await sweepHost(ssh, { signal }))
      observer.log('info', 'removed what a dead clone had left on the source', { name });
  } catch (error) {
    signal.throwIfAborted();
    observer.log('warn', 'what dead clones left on the source could not be removed', {
      reason: String(error),
    });
  }
}

/** Early, so that the source serves its files no longer than needed. If this fails, the cleanup has another try. */
async function endDaemon({ plan, observer }: CloneRun, daemon: RsyncDaemon): Promise<void> {
  try {
    await daemon.stop(AbortSignal.timeout(plan.host.leaseMs));
  } catch (error) {
    observer.log('warn', 'the rsync daemon did not end at once', { reason: String(error) });
  }
}

async function makeAllDirectories(
  roots: readonly Root[],
  selections: readonly Selection[],
  mode: number,
): Promise<void> {
  for (const [index, { destination }] of roots.entries()) {
    await makeDirectories(destination, selections[index]?.directories ?? [], mode);
  }
}

function inside(ready: Ready, tablespaces: readonly TablespacePlace[]): readonly string[] {
  const above = `${ready.facts.dataDirectory}/`;
  return tablespaces
    .filter(({ source }) => source.startsWith(above))
    .map(({ source }) => Buffer.from(source.slice(above.length)).toString('latin1'));
}

function relativeLogDirectory({ facts }: Ready): string | null {
  const directory = facts.settings.log_directory ?? '';
  return directory === '' || directory.startsWith('/')
    ? null
    : Buffer.from(directory).toString('latin1');
}

function vanished(path: string): CloneError {
  return new CloneError('SOURCE_CHANGED', `${path} has vanished from the source`, {
    facts: { path },
    hint: 'See whether the source still runs, then clone again.',
  });
}
