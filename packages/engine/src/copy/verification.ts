/**
 * Reads every copied file once more, here, while the others still come, and finds the pages whose checksum is wrong
 * (R8.2).
 *
 * A page that was changed after the start of the backup may be half old and half new: replay writes it anew as a whole, so
 * it is none of our business. Of any other that is not sound the source is asked again, as long as the backup goes on:
 * what it has there now is as good as what came at first, and is written over it. If that is the same, the page is
 * broken on the source; it was copied as it is, and is named.
 *
 * Not checked: what is no relation file, or has no whole page.
 */
import { open } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { CloneError, checksPages, formatBytes, type Verdict } from '@pgcloned/contract';
import {
  type BackupStart,
  type CheckedFile,
  canJudgePages,
  judgePage,
  openPageChecker,
  parseLsn,
  readWalEnd,
  type Suspect,
} from '@pgcloned/postgres';
import { unlessAborted } from '@pgcloned/process';
import { type ByteName, readRemotePages } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import type { Ready } from '../ready.ts';
import { repeat } from '../repeat.ts';
import { bytePath } from './directories.ts';
import { bytesOf, type SelectedFile } from './select.ts';

/** What one thread judges is more than most networks bring; the cores are for the copy. */
const THREADS_MAX = 4;
const CORES_PER_THREAD = 4;

/** A page that is written just now is whole at the next look; one that never is says nothing good about the disk here. */
const ROUNDS_MAX = 5;

/** Asked from the source at a time. */
const WINDOW_BYTES = 1024 ** 2;

const FILES_NAMED_MAX = 20;
const BLOCKS_NAMED_MAX = 10;

const WAITING_TOLD_MS = 1_000;

/** R1.6 leaves `_init` of unlogged relations alone: they are pages like any others. */
const RELATION_FILE = /(?:^|\/)\d+(?:_(?:fsm|vm|init))?(?:\.(\d+))?$/;
/** Pages of these change without a change of their LSN, so that one that was torn looks like one that was damaged. */
const MAP = /_(?:fsm|vm)(?:\.\d+)?$/;
const IN_DATA_DIRECTORY = /^(?:global|base\/\d+)\/[^/]+$/;
const IN_TABLESPACE = /^\d+\/[^/]+$/;

/** Where files come from and where they lie. */
export interface CheckedRoot {
  readonly source: string;
  readonly destination: string;
  /** What PostgreSQL puts before a name in it: nothing, or `pg_tblspc/16384/PG_15_202209061/`. */
  readonly prefix: string;
}

interface FilesOfRoot {
  readonly root: CheckedRoot;
  readonly files: readonly SelectedFile[];
}

export interface Verification extends AsyncDisposable {
  /** These files are complete here. */
  readonly arrived: (files: FilesOfRoot) => void;
  /** These were here before. */
  readonly kept: (files: FilesOfRoot) => void;
  /**
   * Checks what nobody has told of, waits for all, and asks the source again where it has to.
   *
   * @throws {CloneError} `TRANSFER_FAILED` if a file cannot be read here, or does not keep what is written; and what asking
   *   the source throws: then it can be called again.
   */
  readonly finish: (all: readonly FilesOfRoot[], signal: AbortSignal) => Promise<Verified>;
}

export interface Verified {
  readonly pages: Verdict;
  readonly sums: FileSums;
}

/** What was read of a file, by the name that PostgreSQL has for it. Empty unless a manifest is wanted. */
export type FileSums = ReadonlyMap<ByteName, Pick<CheckedFile, 'bytes' | 'mtimeNs' | 'crc'>>;

/** A file with pages that are not sound. */
interface Suspicious {
  readonly root: CheckedRoot;
  readonly file: SelectedFile;
  readonly firstBlock: number;
  suspects: readonly Suspect[];
  /** Blocks that are the same on the source. */
  readonly broken: Set<number>;
}

export function openVerification(
  run: CloneRun,
  ready: Ready,
  { startLsn }: Pick<BackupStart, 'startLsn'>,
): Verification {
  const { manifest } = run.plan.spec.verification;
  const { dataChecksums, pageBytes, segmentPages } = ready.facts;
  const judgesPages = checksPages(run.plan.spec) && dataChecksums && canJudgePages;
  const checker = openPageChecker({
    ...{ pageBytes, judgesPages, sums: manifest },
    threads: Math.min(THREADS_MAX, Math.ceil(availableParallelism() / CORES_PER_THREAD)),
  });
  const seen = new Map<string, Set<ByteName>>();
  const sums = new Map<ByteName, CheckedFile>();
  const suspicious = new Map<ByteName, Suspicious>();
  const underWay = new Set<Promise<void>>();
  let bytesLeft = 0;

  const check = async ({ root, files }: FilesOfRoot, priority: 'now' | 'later'): Promise<void> => {
    const firstBlock = ({ name }: SelectedFile) =>
      judgesPages ? firstBlockOf(root, name, segmentPages) : null;
    const wanted = files.filter((file) => manifest || firstBlock(file) !== null);
    const bytes = bytesOf(wanted);
    bytesLeft += bytes;
    const answers = await checker.check(
      wanted.map((file) => ({
        path: bytePath(root.destination, file.name).toString('latin1'),
        bytes: file.bytes,
        firstBlock: firstBlock(file),
      })),
      priority,
    );
    bytesLeft -= bytes;
    for (const [index, file] of wanted.entries()) {
      const answer = answers[index] ?? null;
      const name = `${root.prefix}${file.name}`;
      if (manifest && answer !== null) sums.set(name, answer);
      const { broken = new Set<number>() } = suspicious.get(name) ?? {};
      const suspects = answer?.suspects ?? [];
      if (suspects.length === 0 && broken.size === 0) suspicious.delete(name);
      else
        suspicious.set(name, {
          ...{ root, file, suspects, broken },
          firstBlock: firstBlock(file) ?? 0,
        });
    }
  };
  const begin = ({ root, files }: FilesOfRoot, priority: 'now' | 'later') => {
    const names = seen.get(root.destination) ?? new Set();
    seen.set(root.destination, names);
    for (const { name } of files) names.add(name);
    const checking = check({ root, files }, priority);
    underWay.add(checking);
    // Whoever finishes hears of it.
    checking.catch(() => {});
  };
  const beginUnseen = ({ root, files }: FilesOfRoot) => {
    const names = seen.get(root.destination);
    begin({ root, files: files.filter(({ name }) => names?.has(name) !== true) }, 'later');
  };

  if (!judgesPages && !manifest) {
    return {
      arrived: () => {},
      kept: () => {},
      finish: async () => ({ pages: 'skipped', sums }),
      [Symbol.asyncDispose]: async () => {},
    };
  }
  return {
    arrived: (files) => {
      begin(files, 'now');
    },
    kept: beginUnseen,
    finish: async (all, signal) => {
      for (const files of all) beginUnseen(files);
      const telling = repeat(
        WAITING_TOLD_MS,
        async () => {
          run.observer.waiting(`the files are read once more: ${formatBytes(bytesLeft)} left`);
        },
        () => {},
      );
      try {
        await unlessAborted(Promise.all(underWay), signal);
        underWay.clear();
        for (const name of [...suspicious.keys()])
          await settle(() => suspicious.get(name), { run, ready, startLsn, check, signal });
      } finally {
        await telling.stop();
        run.observer.waiting(null);
      }
      const broken = [...suspicious.values()].filter((one) => one.broken.size > 0);
      tellBroken(run, broken);
      return { pages: !judgesPages ? 'skipped' : broken.length > 0 ? 'failed' : 'passed', sums };
    },
    [Symbol.asyncDispose]: async () => {
      await checker[Symbol.asyncDispose]();
    },
  };
}

/** Until no page of the file is left that the source has otherwise and replay does not write anew. */
async function settle(
  now: () => Suspicious | undefined,
  o: {
    readonly run: CloneRun;
    readonly ready: Ready;
    readonly startLsn: string;
    readonly check: (files: FilesOfRoot, priority: 'now') => Promise<void>;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  for (let round = 1; ; round += 1) {
    const one = now();
    if (one === undefined) return;
    const open = await notMended(one, o);
    if (open.length === 0) return;
    if (round > ROUNDS_MAX) throw unwritable(one, open);
    if (!(await fetchAgain(one, open, o))) return;
    await o.check({ root: one.root, files: [one.file] }, 'now');
  }
}

/** The blocks that replay leaves as they are. */
async function notMended(
  { suspects, broken }: Suspicious,
  { ready, startLsn, signal }: Parameters<typeof settle>[1],
): Promise<readonly number[]> {
  const start = parseLsn(startLsn);
  const open = suspects.filter(({ block }) => !broken.has(block));
  if (open.every(({ lsn }) => lsn < start)) return open.map(({ block }) => block);
  // A page of a time that is yet to come: what it says of itself is wrong as well.
  const end = parseLsn(await readWalEnd(ready.session, signal));
  return open.filter(({ lsn }) => lsn < start || lsn > end).map(({ block }) => block);
}

/** @returns Whether anything was written: then the file has to be checked again. */
async function fetchAgain(
  { root, file, firstBlock, broken }: Suspicious,
  blocks: readonly number[],
  { run, ready, startLsn, signal }: Parameters<typeof settle>[1],
): Promise<boolean> {
  const { pageBytes } = ready.facts;
  const start = parseLsn(startLsn);
  let isWritten = false;
  const damaged: number[] = [];
  await using here = await open(bytePath(root.destination, file.name), 'r+');
  for (const window of windowsOf(blocks, Math.floor(WINDOW_BYTES / pageBytes))) {
    const [first = 0] = window;
    const there = await readRemotePages(ready.host.runner(), {
      path: `${root.source}/${file.name}`,
      pageBytes,
      first: first - firstBlock,
      count: (window.at(-1) ?? first) - first + 1,
      signal,
    });
    for (const block of window) {
      const page = there?.subarray((block - first) * pageBytes, (block - first + 1) * pageBytes);
      // Truncated or dropped since: replay does the same here.
      if (page?.length !== pageBytes) continue;
      const position = (block - firstBlock) * pageBytes;
      const { buffer } = await here.read({ buffer: Buffer.alloc(pageBytes), position });
      if (buffer.equals(page)) {
        broken.add(block);
        continue;
      }
      await here.write(page, 0, pageBytes, position);
      isWritten = true;
      const words = new Int32Array(new Uint8Array(page).buffer);
      const { isSound, lsn } = judgePage(words, { at: 0, pageBytes, block });
      if (isSound && lsn < start && !MAP.test(file.name)) damaged.push(block);
    }
  }
  if (damaged.length > 0)
    run.warn(
      `${describeBlocks(root, file, damaged)} had come over damaged, or was damaged on the disk here, and was fetched again`,
    );
  return isWritten;
}

/** Runs of blocks of which the last is less than `width` away from the first. */
function windowsOf(blocks: readonly number[], width: number): readonly (readonly number[])[] {
  const windows: number[][] = [];
  for (const block of blocks) {
    const last = windows.at(-1);
    if (last === undefined || block - (last[0] ?? 0) >= width) windows.push([block]);
    else last.push(block);
  }
  return windows;
}

function firstBlockOf(
  { prefix }: CheckedRoot,
  name: ByteName,
  segmentPages: number,
): number | null {
  if (!(prefix === '' ? IN_DATA_DIRECTORY : IN_TABLESPACE).test(name)) return null;
  const relation = RELATION_FILE.exec(name);
  return relation === null ? null : Number(relation[1] ?? 0) * segmentPages;
}

function tellBroken({ warn }: CloneRun, files: readonly Suspicious[]): void {
  for (const { root, file, broken } of files.slice(0, FILES_NAMED_MAX)) {
    const blocks = [...broken].sort((left, right) => left - right);
    warn(`${describeBlocks(root, file, blocks)} is corrupt on the source: its checksum is wrong`);
  }
  const more = files.length - FILES_NAMED_MAX;
  if (more > 0) warn(`${String(more)} more files have corrupt pages on the source`);
}

/** `block 131074 of base/5/16384 (file base/5/16384.1)`. */
function describeBlocks(
  { prefix }: CheckedRoot,
  { name }: SelectedFile,
  blocks: readonly number[],
): string {
  const path = `${prefix}${name}`;
  const shown = blocks.slice(0, BLOCKS_NAMED_MAX).join(', ');
  const more = blocks.length - BLOCKS_NAMED_MAX;
  return [
    blocks.length === 1 ? 'block' : 'blocks',
    more > 0 ? `${shown} and ${String(more)} more` : shown,
    `of relation ${path.replace(/\.\d+$/, '')} (file ${path})`,
  ].join(' ');
}

function unwritable({ root, file }: Suspicious, blocks: readonly number[]): CloneError {
  const path = bytePath(root.destination, file.name).toString();
  return new CloneError('TRANSFER_FAILED', `${path} does not keep what is written to it`, {
    facts: { path, blocks: blocks.slice(0, BLOCKS_NAMED_MAX).join(', ') },
    hint: 'See the kernel log of this host and the state of its disk and memory before you clone again.',
  });
}
