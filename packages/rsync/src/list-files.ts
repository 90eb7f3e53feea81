/**
 * Lists directories of the source with all that is in them.
 *
 * The list comes from `find` and not from rsync, whose listings are columns that blanks in names break (R6.6). It is a
 * view over some time, not of one moment: what vanishes meanwhile may be in it or not.
 */
import { CloneError } from '@pgcloned/contract';
import type { CommandRunner } from '@pgcloned/process';
import type { ByteName } from './byte-name.ts';
import { askRemote } from './remote-script.ts';

/** About four million files with names as PostgreSQL makes them; the answer is held in memory. */
const OUTPUT_BYTES_MAX = 512 * 1024 * 1024;

export interface SourceEntry {
  /** Relative to its root, without `./`. */
  readonly name: ByteName;
  readonly type: 'file' | 'directory' | 'link' | 'other';
  readonly bytes: number;
  readonly mtimeNs: bigint;
  readonly ctimeNs: bigint;
  readonly inode: bigint;
  /** Permission bits. */
  readonly mode: number;
  readonly linkTarget: ByteName | null;
}

/**
 * Lists each root recursively, without the root itself. A root may be a link to a directory; links below are not followed.
 *
 * @returns For each root its entries, or null if it does not exist.
 * @throws {CloneError} `REMOTE_COMMAND_FAILED` if something below a root cannot be listed, `STALLED`, and what the
 *   runner throws.
 */
export async function listFiles(
  runner: CommandRunner,
  o: {
    readonly roots: readonly string[];
    /** How long nothing may be listed, in milliseconds; all of it takes as long as it takes. */
    readonly stallMs: number;
    readonly signal: AbortSignal;
  },
): Promise<readonly (readonly SourceEntry[] | null)[]> {
  const answer = await askRemote(runner, 'list', o.roots, {
    signal: o.signal,
    limitMs: o.stallMs,
    outputBytesMax: OUTPUT_BYTES_MAX,
  });
  const lists = parseListing(answer ?? Buffer.alloc(0));
  if (lists.length !== o.roots.length) {
    throw new CloneError(
      'REMOTE_COMMAND_FAILED',
      `the listing of ${runner.label} is not complete`,
      {
        facts: { host: runner.label, rootsAsked: o.roots.length, rootsListed: lists.length },
        hint: 'Try again; if it happens again, see what the login shell of the SSH user prints.',
      },
    );
  }
  return lists;
}

/** The words of one entry: type, bytes, mtime, ctime, inode, mode, name, link target. */
const WORDS_PER_ENTRY = 8;

function parseListing(answer: Buffer): readonly (readonly SourceEntry[] | null)[] {
  const lists: (SourceEntry[] | null)[] = [];
  let words: string[] = [];
  for (const word of wordsOf(answer)) {
    if (words.length === 0 && word === 'root') {
      lists.push(null);
      continue;
    }
    words.push(word);
    if (words.length < WORDS_PER_ENTRY) continue;
    const entry = parseEntry(words);
    words = [];
    // The root's own entry comes first and says that the root exists.
    if (entry.name === '') lists[lists.length - 1] = [];
    else lists.at(-1)?.push(entry);
  }
  return words.length === 0 ? lists : [];
}

function* wordsOf(answer: Buffer): Generator<string> {
  let begin = 0;
  for (let end = answer.indexOf(0); end !== -1; end = answer.indexOf(0, begin)) {
    yield answer.toString('latin1', begin, end);
    begin = end + 1;
  }
}

function parseEntry(words: readonly string[]): SourceEntry {
  const [kind = '', bytes, mtime = '', ctime = '', inode = '', mode = '', name = '', target = ''] =
    words;
  const type = TYPES[kind] ?? 'other';
  return {
    name,
    type,
    bytes: Number(bytes),
    mtimeNs: parseTimeNs(mtime),
    ctimeNs: parseTimeNs(ctime),
    inode: BigInt(inode),
    mode: Number.parseInt(mode, 8),
    linkTarget: type === 'link' ? target : null,
  };
}

const TYPES: Readonly<Record<string, SourceEntry['type']>> = {
  f: 'file',
  d: 'directory',
  l: 'link',
};

/** `1700000000.1234567890`: find prints ten digits after the point, of which the last is always 0. */
function parseTimeNs(text: string): bigint {
  const [seconds = '0', fraction = ''] = text.split('.');
  return BigInt(seconds) * 1_000_000_000n + BigInt(fraction.slice(0, 9).padEnd(9, '0'));
}
