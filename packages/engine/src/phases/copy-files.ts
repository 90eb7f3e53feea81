/**
 * Phase 4 of 8: the files of PGDATA and of every tablespace come over, while the source goes on writing them.
 *
 * Promises: every file that the listing after the start of the backup shows, and that recovery needs, is here; what came
 * later comes through WAL (R1.16). pg_control is not among them (R2.5), so nothing here can be started. Everything is on
 * its way to the disk already: the filesystems are synced again and again while the copy goes on, or the sync at the end
 * would take as long again.
 */
import { setTimeout as delay } from 'node:timers/promises';
import {
  CloneError,
  type Compression,
  type ErrorCode,
  formatBytes,
  toCloneError,
  type Verdict,
} from '@pgcloned/contract';
import type { BackupStart } from '@pgcloned/postgres';
import { together } from '@pgcloned/process';
import {
  listFiles,
  type SourceEntry,
  sweepHost,
  type TransferOutcome,
  type TransferRequest,
} from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import { type Batch, type BatchQueue, queueBatches } from '../copy/batches.ts';
import {
  alwaysCompress,
  type CompressionChoice,
  chooseCompression,
} from '../copy/choose-compression.ts';
import { makeDirectories } from '../copy/directories.ts';
import {
  type CopyJournal,
  openCopyJournal,
  removeCopyJournal,
  whatIsCopied,
} from '../copy/journal.ts';
import { copyAll, type TransferStep } from '../copy/pool.ts';
import { listShort, markIncomplete, removeAll } from '../copy/reconcile.ts';
import { openRoad, type Road } from '../copy/road.ts';
import { type Listed, planCopy, type RootPlan, refuseIfFull } from '../copy/root-plan.ts';
import { refuseSource, rootsOf, tablespacesNow } from '../copy/roots.ts';
import { bytesOf } from '../copy/select.ts';
import { openSpaceGate, type SpaceGate } from '../copy/space-gate.ts';
import { takeOver } from '../copy/take-over.ts';
import { openTransport, type Transport } from '../copy/transport.ts';
import { openVerification, type Verification, type Verified } from '../copy/verification.ts';
import type { Ready } from '../ready.ts';
import { type Repetition, repeat } from '../repeat.ts';
import type { TablespacePlace } from '../target/layout.ts';
import { syncFilesystems } from '../target/sync.ts';
import { workersOf } from '../transfer-control.ts';
import { prepareClonePlace } from './stream-wal.ts';

/** Short, so that the disk is never idle and the last sync finds little to do. */
const SYNC_INTERVAL_MS = 700;

/** What may befall the transport or the SSH connection that it hangs on. */
const CHANNEL_LOSSES: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'SOURCE_LOST',
  'RSYNCD_FAILED',
  'SSH_UNREACHABLE',
  'STALLED',
]);
/** A cut of half a minute ends the backup session as well, and then a new attempt is due (R3.2). */
const CHANNEL_PAUSES_MS = [200, 500, 1_000, 2_000, 5_000, 10_000];

export interface Copy extends Verified {
  readonly bytes: number;
  readonly files: number;
  /** Whether every file is proven to be what was read on the source. */
  readonly transfer: Verdict;
  /** Of `bytes`: what was here already and was not sent, whole files and parts of files. */
  readonly keptBytes: number;
  /** What files were compressed with on their way, for the most part; null where nothing was picked. */
  readonly compression: Compression | null;
  /** The tablespaces that were copied: the set at the start of the backup (R1.9). */
  readonly tablespaces: readonly TablespacePlace[];
}

export async function copyFiles(
  run: CloneRun,
  ready: Ready,
  start: Pick<BackupStart, 'startLsn'>,
): Promise<Copy> {
  const { signal, plan } = run;
  const tablespaces = await tablespacesNow(run, ready);
  const roots = rootsOf(ready, tablespaces);
  await using transports = new AsyncDisposableStack();
  const open = async () => transports.use(await openTransport(run, ready, roots));
  const [listings, firstTransport] = await together([
    listFiles(ready.host.ssh(), {
      roots: roots.map(({ source }) => source),
      stallMs: plan.host.stallMs,
      signal,
    }),
    open(),
    sweepSource(run, ready),
  ]);
  await refuseSource(run, ready, tablespaces);
  const listed: Listed = { tablespaces, roots, listings };
  if (ready.data.takesOver) {
    await takeOver(run, ready, listed);
    for (const place of [ready.data, ready.wal])
      if (place?.takesOver === true) await prepareClonePlace(run, ready, place);
  }
  for (const place of tablespaces) await prepareClonePlace(run, ready, place);
  await using journal = await openCopyJournal(ready.data.build, whatIsCopied(ready));
  const bytesToCome = new Map<string, number>();
  await using gate = await openSpaceGate({
    destinations: roots.map(({ destination }) => destination),
    walSegmentBytes: ready.facts.walSegmentBytes,
    bytesToCome: (destination) => bytesToCome.get(destination) ?? 0,
    limitMs: plan.host.noSpaceMs,
    waiting: (reason) => {
      run.observer.waiting(reason);
    },
  });
  await using verification = openVerification(run, ready, start);
  const copying = {
    run,
    ready,
    listed,
    journal,
    kept: { bytes: 0 },
    bytesToCome,
    gate,
    verification,
  };
  for (let losses = 0; ; losses += 1) {
    try {
      // Whatever it hangs on may be away for longer than one pause.
      if (losses > 0) await ready.host.reopen(signal);
      const transport = losses === 0 ? firstTransport : await open();
      return await copyRound({ ...copying, transport, isFirst: losses === 0 });
    } catch (error) {
      const pauseMs = CHANNEL_PAUSES_MS[losses];
      const isLoss = error instanceof CloneError && CHANNEL_LOSSES.has(error.code);
      if (signal.aborted || !isLoss || pauseMs === undefined) throw error;
      run.observer.log('warn', 'the way to the files was lost and is opened again', {
        code: error.code,
        reason: error.message,
        pauseMs,
      });
      await delay(pauseMs, undefined, { signal });
    }
  }
}

/** What all rounds of a copy have in common, and what is of one alone. */
interface Round {
  readonly run: CloneRun;
  readonly ready: Ready;
  readonly listed: Listed;
  readonly journal: CopyJournal;
  /** Counts what need not be sent, over all rounds. */
  readonly kept: { bytes: number };
  /** By destination. */
  readonly bytesToCome: Map<string, number>;
  readonly gate: SpaceGate;
  readonly verification: Verification;
  readonly transport: Transport;
  readonly isFirst: boolean;
}

/**
 * One transport, as long as it lasts. As long as the backup's session lives, what an earlier round has completed stays
 * complete, whatever became of the connection.
 */
async function copyRound(round: Round): Promise<Copy> {
  const { run, ready, listed, journal, kept, bytesToCome, gate, verification, transport, isFirst } =
    round;
  const { observer, plan, transferControl } = run;
  const workers = () => workersOf(transferControl.limits());
  const lost = new AbortController();
  void transport.lost.then((error) => {
    lost.abort(error);
  });
  const unsynced = new AbortController();
  const signal = AbortSignal.any([run.signal, lost.signal, unsynced.signal]);
  const plans = await planCopy({
    ready,
    ...listed,
    // A later round has the same listing: then the time of a file alone tells that it is complete.
    // Whoever asks for checksums trusts no time, not even of what an earlier attempt has brought.
    isVouched: ({ destination }, entry) =>
      !plan.spec.transfer.checksum && (!isFirst || journal.vouchesFor(destination, entry)),
  });
  // Later it is waited for: somebody may be making room.
  if (isFirst && plan.attempt === 1) await refuseIfFull(plans, ready);
  for (const { destination, obsolete, delta, directories, entries } of plans) {
    await removeAll(destination, obsolete);
    await markIncomplete(destination, delta, entries);
    await makeDirectories(destination, directories, ready.facts.dataDirectoryMode);
  }

  const complete = plans.flatMap((one) => one.kept);
  // In a later round that is what an earlier one has sent.
  if (isFirst) kept.bytes += bytesOf(complete);
  const queue = queueBatches(
    plans.flatMap(({ whole, delta }) => [whole, delta]),
    { workers },
  );
  const compared = plans.flatMap(({ delta }) => delta);
  if (journal.isContinued && isFirst && complete.length + compared.length > 0)
    observer.log(
      'info',
      `attempt ${String(plan.attempt)} goes on where the one before was: ${formatBytes(bytesOf(complete))} kept, ${formatBytes(bytesOf(compared))} compared`,
      { keptBytes: bytesOf(complete), comparedBytes: bytesOf(compared) },
    );
  observer.copyPlanned({
    bytesTotal: queue.bytesTotal + bytesOf(complete),
    filesTotal: queue.filesTotal + complete.length,
    keptBytes: kept.bytes,
    workers: workers(),
  });
  using _ = transferControl.onChange(() => {
    observer.workersChanged(workers());
  });
  observer.copied({ worker: null, bytes: bytesOf(complete), files: complete.length });
  for (const root of plans) verification.kept({ root, files: root.kept });
  for (const { destination, whole, delta } of plans)
    bytesToCome.set(destination, bytesOf(whole) + bytesOf(delta));
  await using road = openRoad(transport, transferControl);
  const syncing = syncAgainAndAgain(round, unsynced, signal);
  const compression = compressionFor(run, ready, bytesOf(plans.flatMap(({ whole }) => whole)));
  let verified: Verified;
  try {
    await copyAll(sampled(queue, compression), {
      workers,
      onWorkersChange: transferControl.onChange,
      signal,
      admit: async (batch, batchSignal) => {
        const shortage = await gate.enter(planOf(batch, plans).destination, batchSignal);
        return [shortage, road.closed()];
      },
      copied: ({ root, ...step }) => {
        const { destination } = planOf({ root }, plans);
        bytesToCome.set(destination, (bytesToCome.get(destination) ?? 0) - step.bytes);
        observer.copied(step);
      },
      log: (level, message, fields) => {
        observer.log(level, message, fields);
      },
      transfer: async (batch, step) =>
        await sendBatch(round, { batch, root: planOf(batch, plans), road, compression }, step),
    });
    verified = await verification.finish(
      plans.map((root) => ({ root, files: [...root.kept, ...root.delta, ...root.whole] })),
      signal,
    );
  } finally {
    await syncing.stop();
  }
  unsynced.signal.throwIfAborted();
  return {
    bytes: queue.bytesTotal + bytesOf(complete),
    files: queue.filesTotal + complete.length,
    keptBytes: kept.bytes,
    compression: compression.picked(),
    transfer: 'passed',
    tablespaces: listed.tablespaces,
    ...verified,
  };
}

/** Ends the round by `unsynced` if the disk has lost what was written. */
function syncAgainAndAgain(
  { ready, listed }: Round,
  unsynced: AbortController,
  signal: AbortSignal,
): Repetition {
  return repeat(
    SYNC_INTERVAL_MS,
    async () => {
      await syncFilesystems(
        listed.roots.map(({ destination }) => destination),
        signal,
      ).catch(async (error: unknown) => {
        if (signal.aborted && error === signal.reason) return;
        // The kernel tells of a write that it has lost once: the sync in `publish` would hear nothing of it (R8.1). Nor
        // does the file itself show it, so that no later attempt may keep what lies here.
        await removeCopyJournal(ready.data.build);
        unsynced.abort(lostWrites(ready, error));
      });
    },
    (error) => {
      unsynced.abort(error);
    },
  );
}

/** One batch, through one worker. */
async function sendBatch(
  { run, journal, kept, verification, transport, isFirst }: Round,
  {
    batch,
    root,
    road,
    compression,
  }: {
    readonly batch: Batch;
    readonly root: RootPlan;
    readonly road: Road;
    readonly compression: CompressionChoice;
  },
  { worker, repeat: why, onBytes, signal }: TransferStep,
): Promise<TransferOutcome> {
  const { plan, observer } = run;
  const entries = entriesOf(batch, root);
  if (why === null) await journal.add(root.destination, entries);
  const isDelta = isOfDeltas(batch.root) || why === 'broke-off';
  using sending = compression.begin({
    bytes: batch.bytes,
    files: batch.names.length,
    isWhole: why === null && !isDelta,
  });
  const request = {
    ...{ worker, from: root, through: await road.endpoint() },
    destination: root.destination,
    compression: sending.compression,
    timeoutMs: plan.host.stallMs,
    inheritedFds: run.locks.fds(),
    onWireBytes: run.sent,
    signal,
  } as const;
  const short = isDelta ? await listShort(root.destination, entries) : [];
  let literalBytes = 0;
  if (short.length > 0) {
    const rest = { names: short, send: 'rest', compare: 'ignore-times' } as const;
    // The delta tells of the same bytes, and brings what else is missing.
    ({ literalBytes } = await transport.transfer({ ...request, ...rest, onBytes: () => {} }));
  }
  const outcome = await transport.transfer({
    ...request,
    names: batch.names,
    send: isDelta ? 'delta' : 'whole',
    compare: plan.spec.transfer.checksum ? 'checksum' : comparisonFor(why),
    onBytes: (bytes) => {
      sending.received(bytes);
      onBytes(bytes);
    },
  });
  sending.ended();
  const files = entries.filter(({ name }) => !outcome.again.includes(name));
  verification.arrived({ root, files });
  // What is sent again, or by a later round, may have been sent before: what it finds here proves nothing.
  literalBytes += outcome.literalBytes;
  if (isDelta && why === null && isFirst) {
    const matchedBytes = Math.max(0, batch.bytes - literalBytes);
    kept.bytes += matchedBytes;
    observer.kept(matchedBytes);
  }
  return outcome;
}

/** What the caller asked for, or what turns out to be the fastest; either way the record says so. */
function compressionFor({ plan, observer }: CloneRun, ready: Ready, bytes: number) {
  const asked = plan.spec.transfer.compression;
  if (asked !== 'auto') {
    observer.compression(asked);
    return alwaysCompress(asked);
  }
  return chooseCompression({
    available: ready.compressions,
    bytes,
    tell: (picked, rates) => {
      observer.compression(picked);
      const usable = ready.compressions.join(', ');
      observer.log('info', `compression auto picks ${picked}`, { usable, ...rates });
    },
  });
}

function sampled(queue: BatchQueue, compression: CompressionChoice): BatchQueue {
  return {
    ...queue,
    next: () => {
      const bytes = compression.sampleBytes();
      const sample = bytes === null ? null : queue.sample(bytes, (root) => !isOfDeltas(root));
      return sample ?? queue.next(compression.batchBytesMax());
    },
  };
}

/** Each root of the copy has two of the queue: what is sent whole, and what is sent as differences. */
const isOfDeltas = (root: number) => root % 2 === 1;

function planOf({ root }: Pick<Batch, 'root'>, plans: readonly RootPlan[]): RootPlan {
  const plan = plans[Math.floor(root / 2)];
  if (plan === undefined) throw new Error('a batch without a root');
  return plan;
}

/**
 * Equal size and time mean equal content only for what this very run has sent (R6.9). That is all that has the time of the
 * listing: `markIncomplete` took it from what lay there before. A file that changed while it was read is sent in any case.
 */
function comparisonFor(why: 'broke-off' | 'changed' | null): TransferRequest['compare'] {
  return why === 'changed' ? 'ignore-times' : 'quick';
}

function entriesOf({ names }: Batch, { entries }: RootPlan): readonly SourceEntry[] {
  return names.flatMap((name) => entries.get(name) ?? []);
}

/** What engines left there that died together with the guards of their leases. Not needed for this clone. */
async function sweepSource({ observer, signal }: CloneRun, { host }: Ready): Promise<void> {
  try {
    for (const name of await sweepHost(host.ssh(), { signal }))
      observer.log('info', 'removed what a dead clone had left on the source', { name });
  } catch (error) {
    signal.throwIfAborted();
    observer.log('warn', 'what dead clones left on the source could not be removed', {
      reason: String(error),
    });
  }
}

function lostWrites({ data }: Ready, cause: unknown): CloneError {
  const { message, facts } = toCloneError(cause);
  return new CloneError('TRANSFER_FAILED', 'the target could not be brought to the disk', {
    facts: { dataDirectory: data.final, reason: message, ...facts },
    hint: 'See the kernel log of this host and the state of its disk before you clone again; nothing of this copy is kept then.',
    cause,
  });
}
