/**
 * What each batch is compressed with, where `auto` leaves that to us.
 *
 * Nothing is asked about link and cores: all three ways are tried early on small batches, and then each worker takes what
 * brings one worker the most bytes of files per second as of late. Behind a full link that is what sends less, on busy cores
 * what computes less. Where neither wins, each makes the other worth more, so that some workers compress while others
 * fill the link: both are used up then, which no single choice would do. A limit of the rate, ssh, or a slow disk are
 * in the same figures.
 *
 * It learns from whole files only, since a delta says little about the link, and from small files only if there are no
 * others: those wait for system calls.
 */
import type { Compression } from '@pgcloned/contract';

/** Little is gone before anything is learnt. Then lz4: it costs a fast link little, and a thin one needs it. */
const LITTLE_BYTES = 256 * 1024 ** 2;
/** A trial is this part of the copy: what loses may be ten times as slow. */
const TRIAL_SHARE = 1 / 200;
const TRIAL_BYTES_MIN = 16 * 1024 ** 2;
const TRIAL_BYTES_MAX = 64 * 1024 ** 2;
/** A batch that is so much faster or slower than those before it tells of another link: what is known of others is void. */
const UPHEAVAL = 2;
/**
 * What lost may win by now, and a first measure may have misled: it is tried again soon, and then ever more seldom, in the end
 * for a thirtieth of the time of one worker.
 */
const PAUSE_PER_TRIAL_MAX = 30;
const PAUSE_MIN_MS = 1_000;
/** In trials: with less left nothing is tried again, since everybody would wait for it at the end. */
const WORTH_TRIALS = 20;
/**
 * While little was sent, a batch is small, too: what is chosen for it is chosen by what is known so far, and stays until its
 * end. Each costs an rsync process and a login.
 */
const BATCH_BYTES_LEAST = 128 * 1024 ** 2;
/** A batch is at most this part of what was sent. */
const BATCH_SHARE = 1 / 4;
/** In trials: how much more another one must have sent until that is what was picked. */
const PICK_LEAD = 8;
const TELLING_FILE_BYTES = 128 * 1024;

const CHEAPEST_FIRST = ['none', 'lz4', 'zstd'] as const satisfies readonly Compression[];
/** None comes last: it fills a thin link, and would make the others look worse than they are among themselves. */
const TRIED_FIRST = CHEAPEST_FIRST.toReversed();

export interface Sending extends Disposable {
  readonly compression: Compression;
  /** So many bytes more have come. */
  readonly received: (bytes: number) => void;
  /** All of it has come. */
  readonly ended: () => void;
}

export interface CompressionChoice {
  /** Of the next batch, if it shall be a small one, for a trial; else null. */
  readonly sampleBytes: () => number | null;
  /** How large any other may be, so that not too much is decided at once. */
  readonly batchBytesMax: () => number;
  /** Begins a batch. Disposing of what it returns ends it. */
  readonly begin: (batch: {
    readonly bytes: number;
    readonly files: number;
    /** Sent whole and for the first time. */
    readonly isWhole: boolean;
  }) => Sending;
  /** What most bytes are sent with, as it looks; null until all were tried. */
  readonly picked: () => Compression | null;
}

interface Way {
  readonly compression: Compression;
  running: number;
  bytesSent: number;
  bytesPerSecond: number | null;
  trials: number;
  nextTrialAtMs: number;
}

/** The one way of somebody who knows what is wanted. */
export function alwaysCompress(compression: Compression): CompressionChoice {
  return {
    sampleBytes: () => null,
    batchBytesMax: () => Number.POSITIVE_INFINITY,
    begin: () => ({
      compression,
      received: () => {},
      ended: () => {},
      [Symbol.dispose]: () => {},
    }),
    picked: () => compression,
  };
}

/**
 * @param available What both ends know; `none` is among it.
 * @param bytes What is to be sent whole.
 * @param tell Is called with what is picked, and again when that changes; and with the bytes of files per second of one
 *   worker, by compression.
 * @param nowMs A clock that never goes back.
 */
export function chooseCompression({
  available,
  bytes,
  tell,
  nowMs = () => performance.now(),
}: {
  readonly available: readonly Compression[];
  readonly bytes: number;
  readonly tell: (picked: Compression, rates: Readonly<Record<string, number>>) => void;
  readonly nowMs?: () => number;
}): CompressionChoice {
  const cautious = available.includes('lz4') ? 'lz4' : 'none';
  if (bytes < LITTLE_BYTES || available.length === 1) {
    tell(cautious, {});
    return alwaysCompress(cautious);
  }
  const trialBytes = Math.min(Math.max(bytes * TRIAL_SHARE, TRIAL_BYTES_MIN), TRIAL_BYTES_MAX);
  const ways = new Map<Compression, Way>(
    available.map((compression) => [
      compression,
      { compression, running: 0, bytesSent: 0, bytesPerSecond: null, trials: 0, nextTrialAtMs: 0 },
    ]),
  );
  const inOrder = (order: readonly Compression[]) =>
    order.flatMap((compression) => ways.get(compression) ?? []);
  /** What nobody sends yet. What broke off is counted again, so that less may be tried again, never more. */
  let bytesLeft = bytes;
  const isDue = ({ running, bytesPerSecond, nextTrialAtMs }: Way) =>
    running === 0 &&
    (bytesPerSecond === null ||
      (nowMs() >= nextTrialAtMs && bytesLeft > WORTH_TRIALS * trialBytes));
  const due = () => inOrder(TRIED_FIRST).find(isDue);
  const isTrying = () => [...ways.values()].some(({ bytesPerSecond }) => bytesPerSecond === null);
  const best = () =>
    inOrder(CHEAPEST_FIRST).reduce<Way | undefined>((found, way) => {
      if (way.bytesPerSecond === null) return found;
      return way.bytesPerSecond > (found?.bytesPerSecond ?? 0) ? way : found;
    }, undefined);
  const mayTry = (way: Way | undefined, batchBytes: number) =>
    way !== undefined && (way.bytesPerSecond === null || batchBytes <= 2 * trialBytes);

  const learn = (way: Way, rate: number, tookMs: number) => {
    const { bytesPerSecond: before } = way;
    if (before !== null && (rate > before * UPHEAVAL || rate < before / UPHEAVAL)) {
      for (const other of ways.values()) other.bytesPerSecond = null;
      way.bytesPerSecond = rate;
    } else way.bytesPerSecond = before === null ? rate : (before + rate) / 2;
    way.trials += 1;
    const pauses = Math.min(3 ** way.trials, PAUSE_PER_TRIAL_MAX);
    way.nextTrialAtMs = nowMs() + Math.max(PAUSE_MIN_MS, pauses * tookMs);
  };

  let picked: Way | undefined;
  const pick = () => {
    const all = inOrder(CHEAPEST_FIRST);
    if (all.some(({ bytesSent }) => bytesSent === 0)) return;
    const most = all.reduce((found, way) => (way.bytesSent > found.bytesSent ? way : found));
    const leads = most.bytesSent > (picked?.bytesSent ?? 0) + PICK_LEAD * trialBytes;
    if (picked !== undefined && !leads) return;
    picked = picked === undefined ? best() : most;
    if (picked === undefined) return;
    const rates = all.map(({ compression, bytesPerSecond }) => [
      `${compression}BytesPerSecond`,
      Math.round(bytesPerSecond ?? 0),
    ]);
    tell(picked.compression, Object.fromEntries(rates));
  };

  return {
    sampleBytes: () => (isTrying() || due() !== undefined ? trialBytes : null),
    batchBytesMax: () => {
      const sent = [...ways.values()].reduce((sum, { bytesSent }) => sum + bytesSent, 0);
      return Math.max(BATCH_BYTES_LEAST, sent * BATCH_SHARE);
    },
    begin: (batch) => {
      const candidate = due();
      const way =
        batch.isWhole && mayTry(candidate, batch.bytes)
          ? candidate
          : (best() ?? ways.get(cautious));
      if (way === undefined) throw new Error('nothing to choose from');
      const meter = startMeter(nowMs);
      if (batch.isWhole) way.running += 1;
      bytesLeft -= batch.bytes;
      return {
        compression: way.compression,
        received: meter.received,
        ended: () => {
          way.bytesSent += batch.bytes;
          const isTelling = batch.bytes >= batch.files * TELLING_FILE_BYTES;
          if (batch.isWhole && (isTelling || way.bytesPerSecond === null))
            learn(way, meter.bytesPerSecond(batch.bytes), meter.tookMs());
          pick();
        },
        [Symbol.dispose]: () => {
          if (batch.isWhole) way.running -= 1;
        },
      };
    },
    picked: () => picked?.compression ?? null,
  };
}

/** Counts from the first bytes on: before them an rsync is started and logs in, which takes as long whatever it sends. */
function startMeter(nowMs: () => number) {
  const begunMs = nowMs();
  let first: { readonly bytes: number; readonly atMs: number } | null = null;
  let lastAtMs = begunMs;
  return {
    received: (bytes: number) => {
      lastAtMs = nowMs();
      first ??= { bytes, atMs: lastAtMs };
    },
    tookMs: () => nowMs() - begunMs,
    bytesPerSecond: (bytes: number) => {
      const tookMs = nowMs() - begunMs;
      // What tells of itself at its end only has come in all the time before.
      const isTold = first !== null && first.bytes < bytes / 2 && first.atMs - begunMs < tookMs / 2;
      const counted =
        first !== null && isTold
          ? { bytes: bytes - first.bytes, ms: lastAtMs - first.atMs }
          : { bytes, ms: tookMs };
      return (counted.bytes / Math.max(1, counted.ms)) * 1000;
    },
  };
}
