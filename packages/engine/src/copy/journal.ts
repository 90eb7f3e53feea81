/**
 * The journal of a copy: what the files of the source looked like when they were listed, of those that were begun.
 *
 * It lies in the unfinished clone and is what a later attempt may rely on: a file that is still the same on the source
 * (inode, size, modification and change time, all by the source's clock) and complete here need not be sent again (R6.9).
 * It is believed only for the same server and timeline of the cluster, and only if this host has not been restarted since: then
 * an entry may be on the disk although the file that it stands for is not. Of another one, as after a failover, and of
 * before a restart, it still says of which cluster the files are, so that only what differs has to be sent. Where
 * there is none nothing is kept: it is taken away when the disk has lost writes, because what is read then may be what
 * the disk never got.
 *
 * Lines of JSON, appended to: one for each attempt, then one for each batch.
 */
import { type FileHandle, open, readFile, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { formatServer } from '@pgcloned/contract';
import { codeOf } from '@pgcloned/process';
import type { ByteName, SourceEntry } from '@pgcloned/rsync';
import type { Ready } from '../ready.ts';

/**
 * A write stamps the file before it brings the bytes, and page by page: a server that is held up in between, throttled,
 * starved or by a slow disk, goes on after the listing with no new stamp. What changed shortly before it may have done so.
 */
const SETTLED_NS = 60_000_000_000n;

export const journalPath = (directory: string) => join(directory, '.pgcloned-journal');

export interface CopyIdentity {
  readonly systemIdentifier: string;
  readonly timeline: number;
  /** The name of the server that is copied: inodes and times are those of its host. */
  readonly server: string;
}

/** What {@link openCopyJournal} is told of the source. */
export const whatIsCopied = ({ facts, address, probe }: Ready) => ({
  identity: {
    systemIdentifier: facts.systemIdentifier,
    timeline: facts.timeline,
    server: formatServer(address),
  },
  listedAtNs: probe.now,
});

type Stamp = Pick<SourceEntry, 'inode' | 'bytes' | 'mtimeNs' | 'ctimeNs'>;

interface Vouched extends Stamp {
  readonly listedAtNs: bigint;
}

export interface CopyJournal extends AsyncDisposable {
  /** Whether the file that was last sent into this directory under this name is still what the source has now. */
  readonly vouchesFor: (destination: string, entry: SourceEntry) => boolean;
  /** Whether anything of an earlier attempt may be relied on. */
  readonly isContinued: boolean;
  /** These files are about to be sent, as they were when listed. */
  readonly add: (destination: string, entries: readonly SourceEntry[]) => Promise<void>;
}

/**
 * Opens the journal of an unfinished clone, or begins one.
 *
 * @param listedAtNs A moment before the listing of this attempt, by the clock of the source.
 */
export async function openCopyJournal(
  directory: string,
  { identity, listedAtNs }: { readonly identity: CopyIdentity; readonly listedAtNs: bigint },
): Promise<CopyJournal> {
  const path = journalPath(directory);
  const begun = { ...identity, bootId: await readBootId() };
  const lines = await readWholeLines(path, { cutsTheRest: true });
  const known = believe(lines, begun);
  const isSameCluster = clusterOf(lines) === identity.systemIdentifier;
  const file: FileHandle = await open(path, isSameCluster ? 'a' : 'w', 0o600);
  await append(file, { begin: { ...begun, listedAtNs: String(listedAtNs) } });
  // One line after the other: a long one is written in pieces, and those of two workers would mix.
  let lastInLine: Promise<void> = Promise.resolve();
  return {
    isContinued: known !== null,
    vouchesFor(destination, entry) {
      const vouched = known?.get(keyOf(destination, entry.name));
      if (vouched === undefined) return false;
      const isSame =
        vouched.inode === entry.inode &&
        vouched.bytes === entry.bytes &&
        vouched.mtimeNs === entry.mtimeNs &&
        vouched.ctimeNs === entry.ctimeNs;
      const settledAtNs = vouched.listedAtNs - SETTLED_NS;
      return isSame && entry.mtimeNs < settledAtNs && entry.ctimeNs < settledAtNs;
    },
    add: async (destination, entries) => {
      const line = {
        destination,
        files: entries.map(({ name, inode, bytes, mtimeNs, ctimeNs }) => [
          name,
          String(inode),
          bytes,
          String(mtimeNs),
          String(ctimeNs),
        ]),
      };
      const turn = lastInLine.then(async () => {
        await append(file, line);
      });
      // Whoever adds is told of its own failure; the next one has its own try.
      lastInLine = turn.catch(() => {});
      await turn;
    },
    [Symbol.asyncDispose]: async () => {
      await file.close();
    },
  };
}

/** Ends the journal of a clone that is about to be published. */
export async function removeCopyJournal(directory: string): Promise<void> {
  await rm(journalPath(directory), { force: true });
}

/** The system identifier of the cluster whose files an unfinished clone holds. Null: of none that is worth keeping. */
export async function copiedCluster(directory: string): Promise<string | null> {
  return clusterOf(await readWholeLines(journalPath(directory), { cutsTheRest: false }));
}

/** What was last copied from into an unfinished clone, or null. */
export async function copiedBefore(directory: string): Promise<CopyIdentity | null> {
  const lines = await readWholeLines(journalPath(directory), { cutsTheRest: false });
  return lines.findLast((line) => 'begin' in line)?.begin ?? null;
}

function clusterOf(lines: readonly (BeginLine | BatchLine)[]): string | null {
  const last = lines.findLast((line) => 'begin' in line);
  return last?.begin.systemIdentifier ?? null;
}

async function readBootId(): Promise<string> {
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
}

interface BeginLine {
  readonly begin: CopyIdentity & { readonly bootId: string; readonly listedAtNs: string };
}

interface BatchLine {
  readonly destination: string;
  readonly files: readonly (readonly [string, string, number, string, string])[];
}

/** @returns Null if what was written last is of another cluster, timeline, server or boot, or there is nothing. */
function believe(
  lines: readonly (BeginLine | BatchLine)[],
  { systemIdentifier, timeline, server, bootId }: CopyIdentity & { readonly bootId: string },
): ReadonlyMap<string, Vouched> | null {
  const known = new Map<string, Vouched>();
  let listedAtNs: bigint | null = null;
  for (const line of lines) {
    if ('begin' in line) {
      const { begin } = line;
      const isOurs =
        begin.systemIdentifier === systemIdentifier &&
        begin.timeline === timeline &&
        begin.server === server &&
        begin.bootId === bootId;
      listedAtNs = isOurs ? BigInt(begin.listedAtNs) : null;
      // What came before may have been overwritten since.
      if (!isOurs) known.clear();
      continue;
    }
    if (listedAtNs === null) continue;
    for (const [name, inode, bytes, mtimeNs, ctimeNs] of line.files) {
      known.set(keyOf(line.destination, name), {
        inode: BigInt(inode),
        bytes,
        mtimeNs: BigInt(mtimeNs),
        ctimeNs: BigInt(ctimeNs),
        listedAtNs,
      });
    }
  }
  return listedAtNs === null ? null : known;
}

/**
 * What follows the last line feed was being written when an engine died and does not count. A journal that cannot be read,
 * for example after a crash of this host, is none.
 *
 * @param o.cutsTheRest For whoever goes on writing; who only looks, as a preflight does, changes nothing.
 */
async function readWholeLines(
  path: string,
  { cutsTheRest }: { readonly cutsTheRest: boolean },
): Promise<readonly (BeginLine | BatchLine)[]> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    const code = codeOf(error);
    if (code === 'ENOENT' || code === 'ERR_STRING_TOO_LONG') return '';
    throw error;
  });
  const whole = text.slice(0, text.lastIndexOf('\n') + 1);
  if (cutsTheRest && whole !== text) await truncate(path, Buffer.byteLength(whole));
  try {
    return whole
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as BeginLine | BatchLine);
  } catch (error) {
    if (error instanceof SyntaxError) return [];
    throw error;
  }
}

async function append(file: FileHandle, line: object): Promise<void> {
  await file.appendFile(`${JSON.stringify(line)}\n`);
}

const keyOf = (destination: string, name: ByteName) => `${destination}/${name}`;
