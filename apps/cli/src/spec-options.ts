/**
 * The options of `pgcloned run` that say what a SPEC could say: one table for the help, the values and their mistakes.
 *
 * Only `run` has them. Over HTTP a source is a name, and a whole clone in options would be a second API.
 */
import { parseBytes } from '@pgcloned/contract';

export interface SpecOption {
  readonly flags: string;
  /** Its place in the SPEC. */
  readonly path: readonly string[];
  readonly help: string;
  /** How its text is read; `list`: with commas; `pairs`: repeatable A=B; a constant for an option without a value. */
  readonly read:
    | 'text'
    | 'number'
    | 'bytes'
    | 'list'
    | 'pairs'
    | { readonly constant: string | boolean };
}

const option = (
  flags: string,
  path: string,
  help: string,
  read: SpecOption['read'] = 'text',
): SpecOption => ({ flags, path: path.split('.'), help, read });

export const SPEC_OPTIONS: Readonly<Record<string, readonly SpecOption[]>> = {
  'Source, as psql takes it (PG* variables and ~/.pgpass are honoured):': [
    option('--source <name>', 'source.name', 'a source of the configuration, instead of the rest'),
    option('-H, --host <name>', 'source.host', 'host of the source server (PGHOST)'),
    option('-p, --port <number>', 'source.port', 'its port (PGPORT, 5432)', 'number'),
    option(
      '--hosts <list>',
      'source.hosts',
      'several servers, of which one is copied: a,b:5433',
      'list',
    ),
    option('--prefer <kind>', 'source.prefer', 'which of them: primary, standby (primary)'),
    option('--max-lag <size>', 'source.maxLagBytes', 'how far that standby may be behind', 'bytes'),
    option('-U, --user <name>', 'source.user', 'whom to connect as (PGUSER, postgres)'),
    option('--database <name>', 'source.database', 'where to connect to (PGDATABASE, postgres)'),
    option('--pass-file <file>', 'source.passFile', 'file with passwords (PGPASSFILE, ~/.pgpass)'),
    option(
      '--source-data-directory <path>',
      'source.dataDirectory',
      'refuse a source whose data lies elsewhere',
    ),
  ],
  'Files of the source, over SSH:': [
    option('--ssh-host <name>', 'source.ssh.host', 'SSH server (the host of the source)'),
    option('--ssh-port <number>', 'source.ssh.port', 'its port (22)', 'number'),
    option('--ssh-user <name>', 'source.ssh.user', 'who may read the files (postgres)'),
    option(
      '--ssh-key <file>',
      'source.ssh.privateKeyFile',
      'private key (agent, then the keys of ~/.ssh)',
    ),
    option(
      '--known-hosts <file>',
      'source.ssh.knownHostsFile',
      'known host keys (those of ~/.ssh and /etc/ssh)',
    ),
    option('--insecure-ssh', 'source.ssh.insecure', 'accept any host key: for tests only', {
      constant: true,
    }),
    option('--tunnel-database', 'source.ssh.tunnelDatabase', 'SQL and WAL through SSH as well', {
      constant: true,
    }),
    option('--rsyncd-ports <range>', 'source.rsyncd.ports', 'ports for rsync (45000-45999)'),
    option(
      '--rsyncd-address <address>',
      'source.rsyncd.address',
      'address for rsync (the one SSH reached)',
    ),
  ],
  'Target:': [
    option('-D, --data-directory <path>', 'target.dataDirectory', 'where PGDATA shall lie'),
    option('--wal-directory <path>', 'target.walDirectory', 'where pg_wal shall lie (in PGDATA)'),
    option(
      '--temporary-wal-directory <path>',
      'target.temporaryWalDirectory',
      'where WAL is collected meanwhile (beside PGDATA)',
    ),
    option(
      '--tablespace <old=new>',
      'target.tablespaces',
      'location on the source and here; repeatable',
      'pairs',
    ),
    option('--replace', 'target.ifExists', 'replace the cluster that is there', {
      constant: 'replace',
    }),
    option('--resync', 'target.ifExists', 'bring an older state of the same cluster up to date', {
      constant: 'resync',
    }),
  ],
  'Copy:': [
    option('--method <name>', 'method', 'rsync; reflink with ORIGIN and CLONE, on one host'),
    option('-j, --workers <number>', 'transfer.workers', 'rsyncs at a time (cores, ≤ 8)', 'number'),
    option('--max-rate <size>', 'transfer.maxRate', 'bytes per second of all together', 'bytes'),
    option('--compression <name>', 'transfer.compression', 'none, lz4, zstd or auto (none)'),
    option(
      '--fallback <what>',
      'transfer.fallback',
      'where blocks cannot be shared: fail, copy (fail)',
    ),
    option('--checksum', 'transfer.checksum', 'compare contents, not size and time', {
      constant: true,
    }),
    option(
      '--wal-retention <how>',
      'wal.retention',
      'pin: a temporary slot keeps WAL on the source; none',
    ),
  ],
  'Replica:': [
    option(
      '--role <role>',
      'replica.role',
      'standby or detached (standby; detached for method reflink)',
    ),
    option('--start', 'replica.start', 'start it', { constant: true }),
    option(
      '--wait-for <what>',
      'replica.waitFor',
      'files, consistent, streaming or writable (files)',
    ),
    option('--hold <seconds>', 'replica.hold', 'keep WAL for one started by others', 'number'),
    option(
      '--replica-port <number>',
      'replica.port',
      'its port (a free one, or that of the source)',
      'number',
    ),
    option('--profile <name>', 'replica.profile', 'small: little memory'),
    option('--set <name=value>', 'replica.settings', 'a setting of it; repeatable', 'pairs'),
    option('--slot <name>', 'replica.slot', 'a permanent slot for it, made on the source'),
    option('--cluster-name <name>', 'replica.clusterName', 'its cluster_name'),
    option('--configuration <whose>', 'replica.configuration', 'auto, source or host (auto)'),
  ],
};

/** What an option's text means; what cannot be read stays text, and the schema says what is wrong with it. */
export function readOption({ read }: SpecOption, given: unknown): unknown {
  if (typeof read === 'object') return read.constant;
  if (read === 'pairs') return Object.fromEntries((given as readonly string[]).map(splitPair));
  const text = String(given);
  if (read === 'bytes') return parseBytes(text);
  if (read === 'list') return text.split(',').map((item) => item.trim());
  return read === 'number' && text.trim() !== '' && Number.isFinite(Number(text))
    ? Number(text)
    : text;
}

function splitPair(pair: string): readonly [string, string] {
  const at = pair.indexOf('=');
  return at === -1 ? [pair, ''] : [pair.slice(0, at), pair.slice(at + 1)];
}

/** The options that say something else about the same, by their attributes. */
export function rivalsOf({ flags, path }: SpecOption): string[] {
  return Object.values(SPEC_OPTIONS)
    .flat()
    .filter((other) => other.flags !== flags && other.path.join('.') === path.join('.'))
    .map(attributeOf);
}

/** The name under which commander keeps its value: `--data-directory` is `dataDirectory`. */
export function attributeOf({ flags }: SpecOption): string {
  const [, long = ''] = /--([a-z-]+)/.exec(flags) ?? [];
  return long.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** `--data-directory`, for messages. */
export function longFlagOf({ flags }: SpecOption): string {
  return /--[a-z-]+/.exec(flags)?.[0] ?? flags;
}
