/**
 * One rsync process that fetches named files of one directory of the source.
 *
 * The files change while they are read; WAL replay repairs that. So what counts as success is not rsync's exit status
 * but what it says about each file (`exit-explanation.ts`). Directories must exist already, files that vanished are
 * skipped, and nothing but files arrives: no link, no device, no owner. R6.7.
 *
 * One call is one attempt. Whether it is worth another one is for the caller to decide.
 */
import { addAbortListener } from 'node:events';
import { lstat } from 'node:fs/promises';
import { CloneError, type Compression } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import type { ByteName } from './byte-name.ts';
import { approach, factsOf, type TransferEndpoint } from './endpoint.ts';
import { explainExit } from './exit-explanation.ts';
import { readProgress, readStatistics, readWireBytes, WIRE_FORMAT } from './rsync-output.ts';

/** Comparing by checksum reads both files in silence before the first byte is sent. */
const CHECKSUM_PATIENCE = 10;

/** rsync's own limit, which any byte satisfies, is the first to strike; ours counts progress, and is for an rsync that hangs itself. */
const WATCH_PATIENCE = 5;

/** After SIGTERM rsync goes on reading for a while and throws it away; in place there is nothing that it would tidy up. */
const KILL_AFTER_MS = 0;

/** A few messages for each of the thousands of files of a batch: one that is not kept cannot tell of a file that is missing. */
const MESSAGES_KEPT_MAX = 100_000;

export interface TransferRequest {
  readonly endpoint: TransferEndpoint;
  /** Files, relative to the directory there, without `./`. */
  readonly names: readonly ByteName[];
  /**
   * `whole`: all of each file. `delta`: what is here is compared page by page, and only what differs is sent; of that the
   * source searches every byte, some 30 MB a second. `rest`: of a file that is shorter here what is missing at its end,
   * unseen whether the beginning is the same; it gets neither mode nor time, so that it does not look complete.
   */
  readonly send: 'whole' | 'delta' | 'rest';
  /** A directory that holds the directories of all names. */
  readonly destination: string;
  readonly compression: Compression;
  /**
   * Which files that are here already are fetched all the same. `quick`: those of another size or modification time, in
   * nanoseconds, which is safe only for what the same run has fetched (R6.9). `checksum`: those of other content.
   */
  readonly compare: 'quick' | 'ignore-times' | 'checksum';
  /** No byte for so long is a stall, in milliseconds. */
  readonly timeoutMs: number;
  /** Descriptors that the process shall hold: locks on the target. */
  readonly inheritedFds: readonly number[];
  readonly onBytes: (bytesMore: number) => void;
  /**
   * What went over the network, in both directions, told whenever a file is complete. Of the file in which a transfer broke
   * off it is what lies here, and only if it is sent whole.
   */
  readonly onWireBytes: (bytesMore: number) => void;
  readonly signal: AbortSignal;
}

export interface TransferOutcome {
  /** The sizes of the files that were fetched. */
  readonly bytes: number;
  /** Of them: what was not here already. */
  readonly literalBytes: number;
  /** Truncated or changed while they were read: here, but maybe not whole. Fetch them again, some rounds (R6.1, R6.4). */
  readonly again: readonly ByteName[];
}

/**
 * Fetches the files. The promise settles only after rsync has exited.
 *
 * @throws {CloneError} `TRANSFER_FAILED` if a file cannot be read or written (it is named), `TARGET_NO_SPACE`, `STALLED`,
 *   `SOURCE_LOST` if the connection broke or the daemon has no free one, `RSYNCD_FAILED` if the daemon refuses us,
 *   `SOURCE_CHANGED` if the directory is not there any more, `TOOL_MISSING`.
 * @throws The signal's reason if it aborts.
 */
export async function transfer(request: TransferRequest): Promise<TransferOutcome> {
  const { signal, endpoint, names, onBytes, onWireBytes } = request;
  signal.throwIfAborted();
  const patience = request.compare === 'checksum' ? CHECKSUM_PATIENCE : 1;
  const timeoutMs = request.timeoutMs * patience;
  const stop = new AbortController();
  using _ = addAbortListener(signal, () => {
    stop.abort(signal.reason);
  });
  const watch = setTimeout(() => {
    stop.abort(stalled(request, timeoutMs * WATCH_PATIENCE));
  }, timeoutMs * WATCH_PATIENCE);

  const messages: string[] = [];
  const statistics: string[] = [];
  let bytesSeen = 0;
  let wireBytesSeen = 0;
  let completeAtMs = Date.now();
  try {
    const timeoutSeconds = Math.max(1, Math.ceil(timeoutMs / 1000));
    const { options, source, ...surroundings } = approach(endpoint, { timeoutSeconds });
    const exit = await runProcess(
      {
        file: 'rsync',
        args: [...optionsFor(request), ...options, source, `${request.destination}/`],
        ...surroundings,
        // A name that begins with # or ; would be a comment, even here: R6.6.
        input: Buffer.from(names.map((name) => `./${name}\0`).join(''), 'latin1'),
        inheritedFds: request.inheritedFds,
      },
      {
        signal: stop.signal,
        accept: 'any',
        encoding: 'latin1',
        killAfterMs: KILL_AFTER_MS,
        onLine: (line) => {
          const wireBytesOfFile = readWireBytes(line);
          if (wireBytesOfFile !== null) {
            onWireBytes(wireBytesOfFile);
            wireBytesSeen += wireBytesOfFile;
            completeAtMs = Date.now();
            return;
          }
          const bytes = readProgress(line);
          if (bytes === null) {
            statistics.push(line);
            return;
          }
          if (bytes <= bytesSeen) return;
          onBytes(bytes - bytesSeen);
          bytesSeen = bytes;
          watch.refresh();
        },
        onErrorLine: (line) => {
          if (messages.length < MESSAGES_KEPT_MAX) messages.push(line);
        },
      },
    );
    const again = explainExit({ exit, messages, names: new Set(names), endpoint });
    const { bytes, literalBytes } = readStatistics(statistics);
    return { bytes, literalBytes, again };
  } finally {
    clearTimeout(watch);
    const { wireBytes } = readStatistics(statistics);
    if (wireBytes > 0) onWireBytes(wireBytes - wireBytesSeen);
    else if (request.send === 'whole') onWireBytes(await bytesUnderWay(request, completeAtMs));
  }
}

/** The size of the file that was being written, if any: what is complete has the time of the source's. */
async function bytesUnderWay(
  { names, destination }: TransferRequest,
  sinceMs: number,
): Promise<number> {
  const stats = await Promise.all(
    names.map(async (name) => {
      const path = Buffer.from(name, 'latin1');
      // Not begun, or not to be seen by us: then rsync has told so.
      return await lstat(Buffer.concat([Buffer.from(`${destination}/`), path])).catch(() => null);
    }),
  );
  return stats.find((one) => one !== null && one.mtimeMs > sinceMs)?.size ?? 0;
}

function optionsFor({ names, compression, compare, send }: TransferRequest): string[] {
  return [
    // Names in messages byte for byte, but for control characters.
    '--8-bit-output',
    '--no-implied-dirs',
    ...SEND_OPTIONS[send],
    // No second copy of a gigabyte under a temporary name; the clone cannot start before it is whole.
    '--inplace',
    '--from0',
    '--files-from=-',
    // A table dropped since the listing is no error: R6.3.
    '--ignore-missing-args',
    '--info=progress2,stats2,flist0,nonreg0',
    `--out-format=${WIRE_FORMAT}`,
    '--no-human-readable',
    '--outbuf=L',
    // rsync refuses what arrives without having been asked for, and mistakes a backslash in a name for an escape there.
    // That no name leads out of the destination is checked all the same.
    ...(names.some((name) => name.includes('\\')) ? ['--trust-sender'] : []),
    ...COMPARE_OPTIONS[compare],
    ...(compression === 'none'
      ? []
      : ['--compress', `--compress-choice=${compression}`, '--compress-level=1']),
  ];
}

const SEND_OPTIONS = {
  whole: ['--perms', '--times', '--whole-file'],
  // Relations change by pages of 8 kB, and stay where they are.
  delta: ['--perms', '--times', '--no-whole-file', '--block-size=8192'],
  rest: ['--append'],
} as const satisfies Record<TransferRequest['send'], readonly string[]>;

const COMPARE_OPTIONS = {
  quick: ['--modify-window=-1'],
  'ignore-times': ['--ignore-times'],
  checksum: ['--checksum'],
} as const satisfies Record<TransferRequest['compare'], readonly string[]>;

function stalled({ endpoint }: TransferRequest, silentMs: number): CloneError {
  return new CloneError('STALLED', 'a transfer has stalled', {
    facts: { ...factsOf(endpoint), silentMs },
    hint: 'See whether the disk of the target or the network to the source hangs.',
  });
}
