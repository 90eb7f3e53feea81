/**
 * What of a listing is copied: the exclude rules of PostgreSQL's own base backup, and those that a cloner needs beyond
 * it (R1.1–R1.8, R1.13, R1.14).
 *
 * Pure: a listing in, names out. A name is relative to its root and made of bytes (`ByteName`).
 */
import { CloneError } from '@pgcloned/contract';
import type { ByteName, SourceEntry } from '@pgcloned/rsync';

/** R1.1: at any depth, files and directories alike. */
const SKIPPED_ANYWHERE =
  /^(?:pgsql_tmp.*|\.DS_Store|postgresql\.auto\.conf\.tmp|current_logfiles\.tmp|pg_internal\.init.*|backup_label|tablespace_map|backup_manifest|postmaster\.pid|postmaster\.opts)$/s;

/** R1.2: of the top level, and whatever a clone leaves there itself (`OWN_NAME`). */
const SKIPPED_AT_TOP = new Set([
  'backup_label.old',
  'tablespace_map.old',
  'backup_manifest.tmp',
  'standby.signal',
  'recovery.signal',
  'current_logfiles',
]);

/** Marker, passfile, start log and temporary names of pgcloned: they belong to one directory and are never cloned. */
const OWN_NAME = /^\.?pgcloned[.-]/;

/** What was in the memory of a server that crashed. */
const CORE = /^core(?:\.\d+)?$/;

/** A clone has its socket in its data directory, and the lock of that is a file. */
const SOCKET = /^\.s\.PGSQL\.\d+(?:\.lock)?$/;

/** R1.3: kept but emptied; a link in their place becomes a directory. R1.4: pg_wal likewise. */
const EMPTIED_AT_TOP = new Set([
  'pg_stat_tmp',
  'pg_replslot',
  'pg_dynshmem',
  'pg_notify',
  'pg_serial',
  'pg_snapshots',
  'pg_subtrans',
  'pg_wal',
]);

/** R1.5. */
const TEMPORARY_RELATION = /^t\d+_\d+(?:_[a-z]+)?(?:\.\d+)?$/;
const RELATION = /^(\d+)(?:_(?:fsm|vm|init))?(?:\.\d+)?$/;

export interface SelectedFile {
  readonly name: ByteName;
  readonly bytes: number;
}

export const bytesOf = (files: readonly { readonly bytes: number }[]) =>
  files.reduce((sum, { bytes }) => sum + bytes, 0);

export interface Selection {
  /** Regular files to copy. */
  readonly files: readonly SelectedFile[];
  /** Directories to make, each after its parent. */
  readonly directories: readonly ByteName[];
}

export interface SelectOptions {
  /** Directories of PGDATA that are tablespaces of their own (R1.13), relative to it. */
  readonly tablespacesInside: readonly ByteName[];
  /** `log_directory` if it is relative: logs are of the host that wrote them. */
  readonly logDirectory: ByteName | null;
}

/**
 * @throws {CloneError} `SOURCE_LAYOUT_UNSUPPORTED` if PGDATA holds symlinks that PostgreSQL does not make (R1.14) or
 *   in-place tablespaces.
 */
export function selectDataDirectory(
  entries: readonly SourceEntry[],
  options: SelectOptions,
): Selection {
  refuseForeignLinks(entries, options.logDirectory);
  const unlogged = unloggedRelations(entries, /^base\/\d+$/);
  const skippedRoots = [...options.tablespacesInside];
  if (options.logDirectory !== null) skippedRoots.push(options.logDirectory);

  const made = new Set<ByteName>(EMPTIED_AT_TOP);
  made.add('pg_tblspc');
  const files: SelectedFile[] = [];
  for (const entry of entries) {
    const [top = '', ...below] = entry.name.split('/');
    if (SKIPPED_AT_TOP.has(top) || OWN_NAME.test(top) || SOCKET.test(top)) continue;
    if (CORE.test(top)) continue;
    if ((EMPTIED_AT_TOP.has(top) || top === 'pg_tblspc') && below.length > 0) continue;
    if (skippedRoots.some((root) => entry.name === root || entry.name.startsWith(`${root}/`))) {
      if (entry.name === options.logDirectory) made.add(entry.name);
      continue;
    }
    if (isSkippedAnywhere(entry.name) || isLeftOut(entry, unlogged)) continue;
    // R1.7: pg_control is fetched by itself, last.
    if (entry.name === 'global/pg_control') continue;
    if (entry.type === 'directory') made.add(entry.name);
    else if (entry.type === 'file') files.push({ name: entry.name, bytes: entry.bytes });
  }
  return { files, directories: [...made].sort(byDepth) };
}

/** A tablespace: its root is the version directory (R1.8), so the databases are its first level. */
export function selectTablespace(entries: readonly SourceEntry[]): Selection {
  const unlogged = unloggedRelations(entries, /^\d+$/);
  const kept = entries.filter(
    (entry) => !isSkippedAnywhere(entry.name) && !isLeftOut(entry, unlogged),
  );
  return {
    files: kept.filter(({ type }) => type === 'file').map(({ name, bytes }) => ({ name, bytes })),
    directories: kept
      .filter(({ type }) => type === 'directory')
      .map(({ name }) => name)
      .sort(byDepth),
  };
}

function isSkippedAnywhere(name: ByteName): boolean {
  return name.split('/').some((component) => SKIPPED_ANYWHERE.test(component));
}

/** Temporary relations, and every fork but `_init` of an unlogged one. */
function isLeftOut({ name, type }: SourceEntry, unlogged: ReadonlySet<ByteName>): boolean {
  if (type !== 'file') return false;
  const base = baseOf(name);
  if (TEMPORARY_RELATION.test(base) && /^(?:base\/)?\d+\//.test(name)) return true;
  const relation = RELATION.exec(base)?.[1];
  if (relation === undefined || /_init(?:\.\d+)?$/.test(base)) return false;
  return unlogged.has(`${directoryOf(name)}/${relation}`);
}

/** `directory/relfilenode` of each relation with an init fork in a database directory (R1.6). */
function unloggedRelations(
  entries: readonly SourceEntry[],
  databaseDirectory: RegExp,
): ReadonlySet<ByteName> {
  const found = new Set<ByteName>();
  for (const { name, type } of entries) {
    const relation = /^(\d+)_init$/.exec(baseOf(name))?.[1];
    if (type === 'file' && relation !== undefined && databaseDirectory.test(directoryOf(name)))
      found.add(`${directoryOf(name)}/${relation}`);
  }
  return found;
}

/** What we make empty may be a link over there, and pg_tblspc holds links; any other would be lost without a word. */
function refuseForeignLinks(entries: readonly SourceEntry[], logDirectory: ByteName | null): void {
  const inPlace = entries.find(
    ({ name, type }) => type === 'directory' && /^pg_tblspc\/\d+$/.test(name),
  );
  if (inPlace !== undefined) {
    throw new CloneError('SOURCE_LAYOUT_UNSUPPORTED', 'the source has in-place tablespaces', {
      facts: { directory: inPlace.name },
      hint: 'Move their tables into a tablespace with a location; in-place tablespaces are for tests of PostgreSQL.',
    });
  }
  const links = entries.filter(
    ({ name, type }) =>
      type === 'link' &&
      !EMPTIED_AT_TOP.has(name) &&
      name !== logDirectory &&
      !/^pg_tblspc\/\d+$/.test(name) &&
      !isSkippedAnywhere(name),
  );
  if (links.length === 0) return;
  throw new CloneError('SOURCE_LAYOUT_UNSUPPORTED', 'the data directory contains symbolic links', {
    facts: {
      links: links
        .slice(0, 10)
        .map(({ name }) => name)
        .join(', '),
      count: links.length,
    },
    hint: 'Replace each by the file or directory it points to; only pg_wal and tablespaces may lie elsewhere.',
  });
}

const baseOf = (name: ByteName) => name.slice(name.lastIndexOf('/') + 1);
const directoryOf = (name: ByteName) => name.slice(0, Math.max(0, name.lastIndexOf('/')));

function byDepth(left: ByteName, right: ByteName): number {
  return left.split('/').length - right.split('/').length || (left < right ? -1 : 1);
}
