/**
 * What the end of an rsync process means for a copy of files that change meanwhile.
 *
 * Status 23 is everything from a harmless truncation to a dying disk, so its messages are read one by one, and only those
 * known to be harmless are accepted: ENODATA, which rsync reports when a file is shorter than it was at the open, and a
 * checksum that failed because the file changed. An EIO is neither. R6.1–R6.5.
 *
 * Messages come from rsync 3.1 to 3.5, in the locale C, as strings of latin1; older ones lack the `[sender] `.
 */
import { CloneError, type ErrorCode, type ErrorFacts } from '@pgcloned/contract';
import { describeExit, type Exit } from '@pgcloned/process';
import type { ByteName } from './byte-name.ts';
import { factsOf, NO_DIRECTORY, SENDING, type TransferEndpoint } from './endpoint.ts';

/** `rsync: [sender] read errors mapping "/base/1/2" (in pgdata): No data available (61)` */
const SHORTENED =
  /^rsync: (?:\[\w+\] )?read errors mapping "(.*)"(?: \(in [^()]*\))?: No data available \(61\)$/;

/** `ERROR: base/1/2 failed verification -- update retained.` */
const CHANGED = /^ERROR: (.*) failed verification -- update (?:retained|discarded)\.$/;

/** Said of a file that is then sent again, of what was dropped since the listing, and as the last line of every failure. */
const HARMLESS =
  /^WARNING: .* failed verification -- update .*\(will try again\)\.$|^(?:rsync: (?:\[\w+\] )?)?file has vanished: |^rsync (?:error|warning): |^$/;

const NO_SPACE = /: (?:No space left on device \(28\)|Disk quota exceeded \(122\))$/m;

const STATUS = {
  ok: 0,
  daemonRefused: 5,
  socket: 10,
  fileIo: 11,
  protocolStream: 12,
  signal: 20,
  partial: 23,
  vanished: 24,
  timeout: 30,
  connectTimeout: 35,
  notFound: 127,
  ssh: 255,
} as const;

const CONNECTION_LOST: readonly (number | null)[] = [
  STATUS.socket,
  STATUS.protocolStream,
  STATUS.signal,
  STATUS.timeout,
  STATUS.connectTimeout,
  STATUS.ssh,
  // Killed by somebody, maybe for memory: the next one may live.
  null,
];

/**
 * @param names What was asked for.
 * @returns Those of the names that have to be fetched again.
 * @throws {CloneError} What `transfer` throws.
 */
export function explainExit(o: {
  readonly exit: Exit;
  readonly messages: readonly string[];
  readonly names: ReadonlySet<ByteName>;
  readonly endpoint: TransferEndpoint;
}): readonly ByteName[] {
  const { exit, names, endpoint } = o;
  const { status } = exit;
  if (status === STATUS.ok || status === STATUS.vanished) return [];

  const messages = o.messages.slice(o.messages.lastIndexOf(SENDING) + 1);
  const facts = {
    ...factsOf(endpoint),
    exit: describeExit(exit),
    stderr: messages.slice(-20).map(readable).join('\n'),
  };
  const fail = (code: ErrorCode, message: string, hint: string) =>
    new CloneError(code, message, { facts, hint });

  refuseFullTarget(messages.join('\n'), facts);
  if (status === STATUS.partial) {
    const again = new Set<ByteName>();
    for (const message of messages) {
      const found = namesToRepeat(message, names);
      for (const name of found) again.add(name);
      if (found.length === 0 && !HARMLESS.test(message)) {
        throw fail('TRANSFER_FAILED', `rsync: ${readable(message)}`, hintFor(message));
      }
    }
    if (again.size > 0) return [...again];
    throw fail('TRANSFER_FAILED', 'rsync left files out without saying why', UNKNOWN_HINT);
  }
  if (messages.includes(NO_DIRECTORY)) {
    throw fail(
      'SOURCE_CHANGED',
      'a directory of the source cannot be entered any more',
      'See whether it still exists and the source still runs, then clone again.',
    );
  }
  if (endpoint.kind === 'ssh' && status === STATUS.notFound) {
    throw fail(
      'TOOL_MISSING',
      'rsync is not installed on the source host',
      'Install rsync on the source host.',
    );
  }
  const refusal = messages.find((message) => message.startsWith('@ERROR: '))?.slice(8);
  // A daemon that refuses says so; else the connection broke before it had begun.
  if (refusal?.startsWith('max connections') === false) {
    throw fail(
      'RSYNCD_FAILED',
      `the rsync daemon refuses a transfer: ${refusal}`,
      'See whether the directory still exists on the source host.',
    );
  }
  if (status === STATUS.daemonRefused || CONNECTION_LOST.includes(status)) {
    throw fail(
      'SOURCE_LOST',
      `a transfer broke off: ${refusal ?? reasonOf(messages) ?? describeExit(exit)}`,
      'See whether the source host and the network to it are up.',
    );
  }
  throw fail(
    'TRANSFER_FAILED',
    `rsync: ${reasonOf(messages) ?? describeExit(exit)}`,
    hintFor(messages.join('\n')),
  );
}

/** @throws {CloneError} `TARGET_NO_SPACE` if that is what rsync complains of. */
export function refuseFullTarget(stderr: string, facts: ErrorFacts): void {
  if (!NO_SPACE.test(stderr)) return;
  throw new CloneError('TARGET_NO_SPACE', 'the target has no space left', {
    facts,
    hint: 'Make room on the filesystem of the target, or choose a larger one.',
  });
}

/**
 * The names that a harmless message may be about; none if it is another message, or about nothing that was asked for.
 *
 * A daemon shows paths below its module, an rsync over SSH whole ones, of which nobody knows how much is the directory.
 * What is sent once too often does no harm.
 */
function namesToRepeat(message: string, names: ReadonlySet<ByteName>): readonly ByteName[] {
  const shown = SHORTENED.exec(message)?.[1] ?? CHANGED.exec(message)?.[1];
  if (shown === undefined) return [];
  const components = unescapeName(shown).split('/');
  return components
    .map((_, index) => components.slice(index).join('/'))
    .filter((name) => names.has(name));
}

/** rsync shows control characters, and a backslash that could be mistaken for such an escape, as `\#ooo`. */
function unescapeName(shown: string): ByteName {
  return shown.replace(/\\#([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

function reasonOf(messages: readonly string[]): string | undefined {
  const message = messages.find((candidate) => !HARMLESS.test(candidate)) ?? messages[0];
  return message === undefined ? undefined : readable(message);
}

/** For people: without rsync's own prefix, and with names of UTF-8 as such. */
function readable(message: string): string {
  return Buffer.from(message.replace(/^rsync: (?:\[\w+\] )?/, ''), 'latin1').toString('utf8');
}

const UNKNOWN_HINT = 'See the messages of rsync, and the logs of both hosts.';

function hintFor(message: string): string {
  if (/Permission denied \(13\)/.test(message)) {
    return /\[(?:receiver|generator)\]/.test(message)
      ? 'Make the target writable for the user that runs the worker.'
      : 'Connect by SSH as the user that owns the cluster, which is usually postgres.';
  }
  if (/Input\/output error \(5\)/.test(message)) {
    return 'A disk fails to read or write this file: see the kernel log of its host before anything else.';
  }
  if (/is your shell clean/.test(message)) {
    return 'Let the login shell of the SSH user print nothing when it runs a command, or use transfer.transport: rsyncd.';
  }
  if (/compress/.test(message)) {
    return 'Use rsync 3.2.0 or newer on both hosts, or no compression.';
  }
  if (/Read-only file system \(30\)/.test(message)) return 'Make the target writable.';
  return UNKNOWN_HINT;
}
