/**
 * The source's own configuration files, where they or what they include lie outside its data directory (R1.15): read over SSH
 * and put into the clone's data directory, with what they include in the place of the include.
 */
import { dirname, isAbsolute, join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { type CommandRunner, quoteForShell } from '@pgcloned/process';
import { listFiles, readRemoteFile } from '@pgcloned/rsync';

/** A configuration file beyond this is none. */
const FILE_BYTES_MAX = 1024 * 1024;
/** As deep as the server itself follows includes. */
const INCLUDE_DEPTH_MAX = 10;

/** In `postgresql.conf` case does not count, and a name that begins with a letter needs no quotes. */
const INCLUDE =
  /^\s*(include|include_if_exists|include_dir)(?:\s*=\s*|\s+|(?='))(?:'((?:[^']|'')*)'|([a-z][\w.:/-]*))\s*(?:#.*)?$/i;

/** In `pg_hba.conf` and `pg_ident.conf`, since 16. */
const AUTHENTICATION_INCLUDE =
  /^\s*(include|include_if_exists|include_dir)[\s,]+(?:"([^"]*)"|([^\s,"#]+))\s*(?:#.*)?$/;

/** What a line of those consists of: a name in quotes, in which nothing has a meaning, a comment, or anything else. */
const AUTHENTICATION_PART = /"[^"]*"|#.*$|[^"#]+/g;
/** It stands for the names in that file. */
const NAME_FILE = /(?<=^|[\s,])@([^\s,]+)/g;
/** Between commas, blanks or line feeds. */
const NAME_IN_FILE = /"[^"]*"|[^\s,"]+/g;
const COMMENT = /#.*$/gm;

/** Settings that point to the source's own files: without them the server takes those in its data directory. */
const POINTS_TO_SOURCE =
  /^\s*(?:data_directory|config_file|hba_file|ident_file|external_pid_file)\b/i;

/** What a host with a configuration of its own decides for itself: where its servers are reached, and where they write. */
const IS_OF_THE_HOST = /^\s*(?:port|listen_addresses|unix_socket_directories|log_directory)\b/i;

interface Syntax {
  readonly include: RegExp;
  /** Whether `@file` stands for the names in a file. */
  readonly hasNameFiles: boolean;
}

interface Reading {
  readonly runner: CommandRunner;
  readonly stallMs: number;
  readonly signal: AbortSignal;
}

/** `postgresql.conf` with its includes resolved. */
export async function readSourceConfiguration(path: string, reading: Reading): Promise<string> {
  return await readWithIncludes(path, { ...reading, include: INCLUDE, hasNameFiles: false }, 0);
}

/** `pg_hba.conf` or `pg_ident.conf`, likewise; a server that lacks one of the files lets nobody in, or does not start. */
export async function readSourceAuthentication(path: string, reading: Reading): Promise<string> {
  const syntax = { include: AUTHENTICATION_INCLUDE, hasNameFiles: true };
  return await readWithIncludes(path, { ...reading, ...syntax }, 0);
}

/** Whether this text is not the whole configuration: a file that it includes may lie anywhere on the source. */
export function includesFiles(text: string): boolean {
  return text.split('\n').some((line) => INCLUDE.test(line));
}

/** The same for `pg_hba.conf` and `pg_ident.conf`. */
export function authenticationIncludesFiles(text: string): boolean {
  return text
    .split('\n')
    .some((line) => AUTHENTICATION_INCLUDE.test(line) || line.search(NAME_FILE) >= 0);
}

/** One file of the source, as text. */
async function readSourceFile(path: string, reading: Reading): Promise<string> {
  const content = await readRemoteFile(reading.runner, {
    path,
    bytesMax: FILE_BYTES_MAX,
    signal: reading.signal,
  });
  if (content !== null && content.length < FILE_BYTES_MAX) return content.toString('utf8');
  throw new CloneError('SOURCE_RIGHTS_MISSING', `${path} of the source cannot be read`, {
    facts: { path, host: reading.runner.label },
    hint: `Let the SSH user read it: test with \`head ${quoteForShell(path)}\` there.`,
  });
}

/** The text with the lines commented out that would lead the clone to files of the source (R9.4, R9.6). */
export function neutralizePaths(text: string): string {
  return withoutLines(text, POINTS_TO_SOURCE);
}

/** The same for what would come before the configuration of this host, if it has one. */
export function leaveToHost(text: string): string {
  return withoutLines(text, IS_OF_THE_HOST);
}

/** A cluster of its own has no use for the way to the upstream of its source, and who reads its files none for the password. */
export function forgetUpstream(text: string): string {
  return text.replace(/^\s*primary_conninfo\b.*$/gim, '#pgcloned: primary_conninfo was left out');
}

function withoutLines(text: string, unwanted: RegExp): string {
  return text
    .split('\n')
    .map((line) => (unwanted.test(line) ? `#pgcloned: ${line}` : line))
    .join('\n');
}

async function readWithIncludes(
  path: string,
  reading: Reading & Syntax,
  depth: number,
): Promise<string> {
  refuseCircle(path, depth);
  const lines: string[] = [];
  for (const line of (await readSourceFile(path, reading)).split('\n')) {
    const [, directive, quoted, bare] = reading.include.exec(line) ?? [];
    const target = quoted?.replaceAll("''", "'") ?? bare;
    if (directive === undefined || target === undefined) {
      lines.push(reading.hasNameFiles ? await withNamesOfFiles(line, path, reading, depth) : line);
      continue;
    }
    lines.push(`#pgcloned: ${line}`);
    const included = isAbsolute(target) ? target : join(dirname(path), target);
    for (const file of await filesOf(directive.toLowerCase(), included, reading))
      lines.push(await readWithIncludes(file, reading, depth + 1));
  }
  return lines.join('\n');
}

function refuseCircle(path: string, depth: number): void {
  if (depth <= INCLUDE_DEPTH_MAX) return;
  throw new CloneError('SOURCE_LAYOUT_UNSUPPORTED', 'configuration files include each other', {
    facts: { path },
    hint: 'Remove the circle of includes on the source.',
  });
}

/** With the names in the place of each `@file`, a file of databases or users. */
async function withNamesOfFiles(
  line: string,
  path: string,
  reading: Reading,
  depth: number,
): Promise<string> {
  refuseCircle(path, depth);
  const parts: string[] = [];
  for (const part of line.match(AUTHENTICATION_PART) ?? []) {
    let copiedUpTo = 0;
    const matches = /^["#]/.test(part) ? [] : part.matchAll(NAME_FILE);
    for (const { 0: found, 1: name = '', index } of matches) {
      const file = isAbsolute(name) ? name : join(dirname(path), name);
      const text = (await readSourceFile(file, reading)).replace(COMMENT, '');
      // A field without a name would make another line of it.
      const names = (text.match(NAME_IN_FILE) ?? ['""']).join(',');
      parts.push(part.slice(copiedUpTo, index));
      parts.push(await withNamesOfFiles(names, file, reading, depth + 1));
      copiedUpTo = index + found.length;
    }
    parts.push(part.slice(copiedUpTo));
  }
  return parts.join('');
}

async function filesOf(
  directive: string,
  path: string,
  { runner, stallMs, signal }: Reading,
): Promise<readonly string[]> {
  if (directive === 'include') return [path];
  const isDirectory = directive === 'include_dir';
  const [entries] = await listFiles(runner, {
    roots: [isDirectory ? path : dirname(path)],
    stallMs,
    signal,
  });
  const names = (entries ?? [])
    .filter(({ type, name }) => type !== 'directory' && !name.includes('/'))
    .map(({ name }) => Buffer.from(name, 'latin1').toString('utf8'));
  if (!isDirectory)
    return names.map((name) => join(dirname(path), name)).filter((one) => one === path);
  return names
    .filter((name) => name.endsWith('.conf') && !name.startsWith('.'))
    .toSorted()
    .map((name) => join(path, name));
}
