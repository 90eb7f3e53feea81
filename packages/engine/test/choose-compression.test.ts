/**
 * What `auto` makes of links and cores that are made up here: copies are played through with a clock of our own, by workers
 * that share a link and some cores fairly.
 */
import type { Compression } from '@pgcloned/contract';
import { expect, test } from 'vitest';
import {
  alwaysCompress,
  type CompressionChoice,
  chooseCompression,
  type Sending,
} from '../src/copy/choose-compression.ts';

const MB = 1024 ** 2;
const STEP_MS = 10;
const ALL = ['none', 'lz4', 'zstd'] as const;

/** As measured on pages of text: seconds of a core per gigabyte, and how much smaller it gets. */
const COSTS = {
  none: { secondsPerGb: 3, ratio: 1 },
  lz4: { secondsPerGb: 4.5, ratio: 2.7 },
  zstd: { secondsPerGb: 6, ratio: 6 },
} as const;

interface World {
  readonly workers: number;
  readonly cores: number;
  /** Of the link, after so many seconds. */
  readonly linkMbPerSecond: (seconds: number) => number;
  readonly gigabytes: number;
  /** Largest first. */
  readonly fileMb?: number;
  /** For so many seconds at its beginning zstd crawls. */
  readonly crawlsForSeconds?: number;
}

interface Played {
  readonly seconds: number;
  readonly sentBy: Readonly<Record<Compression, number>>;
}

/** Shares of at most what each wants, and otherwise equal ones. */
function fairShares(wanted: readonly number[], capacity: number): number[] {
  const shares = wanted.map(() => 0);
  let left = capacity;
  const order = wanted
    .map((_, index) => index)
    .toSorted((a, b) => (wanted[a] ?? 0) - (wanted[b] ?? 0));
  for (const [rank, index] of order.entries()) {
    const share = Math.min(wanted[index] ?? 0, left / (order.length - rank));
    shares[index] = share;
    left -= share;
  }
  return shares;
}

function play(world: World, choose: (clock: () => number) => CompressionChoice): Played {
  let clockMs = 0;
  const choice = choose(() => clockMs);
  const fileBytes = (world.fileMb ?? 1) * MB;
  let bytesLeft = world.gigabytes * 1000 * MB;
  const sentBy = { none: 0, lz4: 0, zstd: 0 };
  const running: ({ sending: Sending; bytes: number; left: number } | null)[] = Array.from(
    { length: world.workers },
    () => null,
  );
  const pull = () => {
    if (bytesLeft <= 0) return null;
    const most = Math.min(1024 * MB, choice.batchBytesMax());
    const share = Math.min(Math.max(bytesLeft / world.workers, 64 * MB), most);
    const wanted = Math.max(choice.sampleBytes() ?? share, fileBytes);
    const bytes = Math.min(wanted, bytesLeft);
    bytesLeft -= bytes;
    const files = Math.ceil(bytes / fileBytes);
    const sending = choice.begin({ bytes, files, isWhole: true });
    sentBy[sending.compression] += bytes;
    return { sending, bytes, left: bytes };
  };
  for (;;) {
    for (let index = 0; index < running.length; index += 1) running[index] ??= pull();
    const active = running.flatMap((batch) => batch ?? []);
    if (active.length === 0) return { seconds: clockMs / 1000, sentBy };
    const costs = active.map(({ sending }) => COSTS[sending.compression]);
    const onTheirOwn = costs.map(({ secondsPerGb }) => 1000 / secondsPerGb);
    const link = world.linkMbPerSecond(clockMs / 1000);
    const byLink = fairShares(
      costs.map(({ ratio }, index) => (onTheirOwn[index] ?? 0) / ratio),
      link,
    ).map((share, index) => share * (costs[index]?.ratio ?? 1));
    const cores = fairShares(
      costs.map(({ secondsPerGb }, index) => ((byLink[index] ?? 0) * secondsPerGb) / 1000),
      world.cores,
    );
    clockMs += STEP_MS;
    for (const [index, batch] of active.entries()) {
      const crawls =
        batch.sending.compression === 'zstd' && clockMs < (world.crawlsForSeconds ?? 0) * 1000;
      const mbPerSecond =
        ((cores[index] ?? 0) * 1000) / (costs[index]?.secondsPerGb ?? 1) / (crawls ? 10 : 1);
      const bytes = (mbPerSecond * MB * STEP_MS) / 1000;
      batch.left -= bytes;
      batch.sending.received(bytes);
      if (batch.left > 0) continue;
      batch.sending.ended();
      batch.sending[Symbol.dispose]();
      running[running.indexOf(batch)] = null;
    }
  }
}

const playAuto = (world: World, available: readonly Compression[] = ALL) => {
  const picks: Compression[] = [];
  const played = play(world, (nowMs) =>
    chooseCompression({
      available,
      bytes: world.gigabytes * 1000 * MB,
      tell: (compression) => picks.push(compression),
      nowMs,
    }),
  );
  return { ...played, picks };
};
const playBest = (world: World) =>
  Math.min(...ALL.map((one) => play(world, () => alwaysCompress(one)).seconds));

const GIGABIT = 118;

test.each<[string, World, Compression]>([
  ['one machine', { workers: 2, cores: 2, linkMbPerSecond: () => 1e5, gigabytes: 10 }, 'none'],
  [
    '10 Gbit/s and few cores',
    { workers: 4, cores: 4, linkMbPerSecond: () => 1180, gigabytes: 20 },
    'none',
  ],
  ['1 Gbit/s', { workers: 8, cores: 16, linkMbPerSecond: () => GIGABIT, gigabytes: 20 }, 'zstd'],
  [
    '1 Gbit/s, one worker',
    { workers: 1, cores: 8, linkMbPerSecond: () => GIGABIT, gigabytes: 5 },
    'lz4',
  ],
  ['100 Mbit/s', { workers: 8, cores: 8, linkMbPerSecond: () => 12, gigabytes: 10 }, 'zstd'],
])('over %s a copy takes hardly longer than with the best for it', (_, world, expected) => {
  const { seconds, picks } = playAuto(world);

  expect(picks.at(-1)).toBe(expected);
  expect(seconds).toBeLessThan(playBest(world) * 1.08);
});

test('where link and cores are both short it is as fast as the best, or faster', () => {
  const world = { workers: 4, cores: 2, linkMbPerSecond: () => GIGABIT, gigabytes: 10 };

  const { seconds } = playAuto(world);

  expect(seconds).toBeLessThan(playBest(world) * 1.03);
});

test('a first measure that misleads costs little', () => {
  const world = { workers: 4, cores: 4, linkMbPerSecond: () => GIGABIT, gigabytes: 5 };

  const { seconds } = playAuto({ ...world, crawlsForSeconds: 1 });

  expect(seconds).toBeLessThan(1 + playBest(world) * 1.25);
});

test('when the link changes in the middle so does the choice', () => {
  const world = {
    ...{ workers: 4, cores: 4, gigabytes: 40, fileMb: 100 },
    linkMbPerSecond: (seconds: number) => (seconds < 20 ? 1e5 : 50),
  };

  const { seconds, sentBy } = playAuto(world);

  expect(sentBy.none).toBeGreaterThan(15_000 * MB);
  expect(sentBy.zstd).toBeGreaterThan(10_000 * MB);
  // The batches that are on their way stay as they are.
  expect(seconds).toBeLessThan(playBest(world) * 1.15);
});

test('of what loses, little is tried again in an hour', () => {
  const world = { workers: 4, cores: 8, linkMbPerSecond: () => 50, gigabytes: 1000, fileMb: 10 };

  const { sentBy } = playAuto(world);

  expect(sentBy.none).toBeLessThan(world.gigabytes * 1000 * MB * 0.02);
});

test.each<readonly Compression[]>([['none'], ['none', 'lz4'], ['none', 'zstd']])(
  'nothing is used but what both ends know',
  (...available) => {
    const { sentBy } = playAuto(
      { workers: 4, cores: 8, linkMbPerSecond: () => 50, gigabytes: 2 },
      available,
    );

    for (const compression of ALL)
      expect(sentBy[compression] > 0).toBe(available.includes(compression));
  },
);

test('with little to copy nothing is tried', () => {
  const { picks, sentBy } = playAuto({
    ...{ workers: 4, cores: 4, linkMbPerSecond: () => 1000, gigabytes: 0.1 },
  });

  expect(picks).toEqual(['lz4']);
  expect(sentBy).toMatchObject({ none: 0, zstd: 0 });
});

test('what is told of at its end only has not come in no time', () => {
  let clockMs = 0;
  const rates: Readonly<Record<string, number>>[] = [];
  const choice = chooseCompression({
    ...{ available: ALL, bytes: 10_000 * MB, nowMs: () => clockMs },
    tell: (_, said) => rates.push(said),
  });
  for (const _ of ALL) {
    const sending = choice.begin({ bytes: 60 * MB, files: 60, isWhole: true });
    clockMs += 1000;
    sending.received(20 * MB);
    sending.received(40 * MB);
    sending.ended();
    sending[Symbol.dispose]();
  }

  const each = 60 * MB;
  expect(rates).toEqual([
    { noneBytesPerSecond: each, lz4BytesPerSecond: each, zstdBytesPerSecond: each },
  ]);
});

test('what broke off tells nothing, and is tried again', () => {
  const choice = chooseCompression({ available: ALL, bytes: 10_000 * MB, tell: () => {} });
  const batch = { bytes: 60 * MB, files: 60, isWhole: true };
  const first = choice.begin(batch);
  first[Symbol.dispose]();

  expect(choice.begin(batch).compression).toBe(first.compression);
});

test('a delta is not taken for a measure', () => {
  const choice = chooseCompression({ available: ALL, bytes: 10_000 * MB, tell: () => {} });
  const delta = choice.begin({ bytes: 60 * MB, files: 60, isWhole: false });
  delta.ended();
  delta[Symbol.dispose]();

  expect(choice.sampleBytes()).not.toBeNull();
});
