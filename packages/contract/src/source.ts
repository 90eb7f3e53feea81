/**
 * How a worker reaches a source cluster: its SQL, its SSH server, its rsync daemon.
 *
 * Secrets are named by files that only the worker's host has; none is a value here.
 */
import * as z from 'zod';

const port = z.int().min(1).max(65_535);

const Ssh = z.strictObject({
  host: z.string().min(1).nullable().default(null),
  user: z.string().min(1).default('postgres'),
  port: port.default(22),
  privateKeyFile: z.string().min(1).nullable().default(null),
  agent: z.boolean().default(false),
  knownHostsFile: z.string().min(1).nullable().default(null),
  insecure: z.boolean().default(false),
  tunnelDatabase: z.boolean().default(false),
});

/** `FIRST-LAST` of ports that need no privileges. */
export const PortRange = z
  .string()
  .regex(/^\d{1,5}-\d{1,5}$/, 'must be a range such as 45000-45999')
  .refine((range) => {
    const { first, last } = portsOf(range);
    return first >= 1024 && first <= last && last <= 65_535;
  }, 'must lie within 1024-65535, the smaller port first');

/** The first and the last port of a `PortRange`. */
export function portsOf(range: string): { readonly first: number; readonly last: number } {
  const [first = 0, last = 0] = range.split('-').map(Number);
  return { first, last };
}

const Rsyncd = z.strictObject({
  ports: PortRange.default('45000-45999'),
  address: z.string().min(1).nullable().default(null),
});

const Replication = z.strictObject({
  user: z.string().min(1).nullable().default(null),
  passFile: z.string().min(1).nullable().default(null),
});

/** One machine; an IPv6 address has several colons. */
const HostOnly = z
  .string()
  .min(1)
  .refine((host) => !/^[^:]+:\d+$/.test(host), 'must not hold a port: that is `port`')
  .refine((host) => !host.includes(','), 'must be one host: several are `hosts`');

const Server = z
  .string()
  .regex(
    /^(?:\[[0-9A-Fa-f:.]+\]|[^\s:,/[\]]+)(?::\d{1,5})?$/,
    'must be HOST or HOST:PORT, an IPv6 address in brackets',
  )
  .refine((server) => {
    const { port: number } = parseServer(server, 1);
    return number >= 1 && number <= 65_535;
  }, 'must have a port from 1 to 65535');

/**
 * SQL files that run in each detached clone of the source before anybody else can reach it. They are the operator's: SQL
 * from a request would be code execution on the host.
 */
const OnReady = z.array(z.string().regex(/^\//, 'must be an absolute path')).max(100).default([]);

const shape = z.strictObject({
  local: z.literal(false).default(false),
  host: HostOnly.nullable().default(null),
  hosts: z.array(Server).min(1).nullable().default(null),
  prefer: z.enum(['primary', 'standby']).nullable().default(null),
  maxLagBytes: z.int().min(0).nullable().default(null),
  port: port.default(5432),
  user: z.string().min(1).default('postgres'),
  database: z.string().min(1).default('postgres'),
  passFile: z.string().min(1).nullable().default(null),
  sslmode: z
    .enum(['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'])
    .default('prefer'),
  sslRootCertFile: z.string().min(1).nullable().default(null),
  dataDirectory: z.string().min(1).nullable().default(null),
  ssh: Ssh.prefault({}),
  rsyncd: Rsyncd.prefault({}),
  replication: Replication.prefault({}),
  onReady: OnReady,
});

export const SourceConfiguration = shape.superRefine((source, context) => {
  for (const { path, message } of brokenRules(source))
    context.addIssue({ code: 'custom', path: [...path], message });
});

/** One that is `local` has neither host nor port: its postmaster.pid tells how it is reached. */
export type SourceConfiguration = Omit<z.output<typeof SourceConfiguration>, 'local'> & {
  readonly local: boolean;
};

/** A cluster on the worker's own host, for method `reflink`. */
export const LocalSource = z.strictObject({
  local: z.literal(true),
  dataDirectory: z.string().regex(/^\//, 'must be an absolute path'),
  user: z.string().min(1).nullable().default(null),
  database: z.string().min(1).default('postgres'),
  passFile: z.string().min(1).nullable().default(null),
  onReady: OnReady,
});

export type LocalSource = z.output<typeof LocalSource>;

/** @param defaultUser Whom to connect as where the source says nothing: the user that owns its files, as psql would. */
export function localSource(
  { user, ...source }: LocalSource,
  { defaultUser }: { readonly defaultUser: string },
): SourceConfiguration {
  return { ...shape.parse({}), ...source, user: user ?? defaultUser };
}

export interface ServerAddress {
  readonly host: string;
  readonly port: number;
}

/** The servers that a source may be, in the order of the configuration. */
export function serversOf({
  host,
  hosts,
  port: defaultPort,
}: Pick<SourceConfiguration, 'host' | 'hosts' | 'port'>): readonly ServerAddress[] {
  if (host !== null) return [{ host, port: defaultPort }];
  return (hosts ?? []).map((server) => parseServer(server, defaultPort));
}

/** `db1:5432`, for messages. */
export function formatServer({ host, port: number }: ServerAddress): string {
  return `${host.includes(':') ? `[${host}]` : host}:${String(number)}`;
}

function parseServer(server: string, defaultPort: number): ServerAddress {
  const [, bracketed, plain, number] = /^(?:\[(.*)\]|(.*?))(?::(\d+))?$/.exec(server) ?? [];
  return {
    host: bracketed ?? plain ?? '',
    port: number === undefined ? defaultPort : Number(number),
  };
}

interface BrokenRule {
  readonly path: readonly (string | number)[];
  readonly message: string;
}

function brokenRules(source: z.output<typeof shape>): readonly BrokenRule[] {
  const { host, hosts, prefer, maxLagBytes, ssh, rsyncd } = source;
  const broken: BrokenRule[] = [];
  const refuse = (path: BrokenRule['path'], message: string, isBroken: boolean) => {
    if (isBroken) broken.push({ path, message });
  };
  refuse(['host'], 'is missing: name one server here, or several in `hosts`', !host && !hosts);
  refuse(['hosts'], 'cannot stand beside `host`', host !== null && hosts !== null);
  const named = host === null ? serversOf(source).map(formatServer) : [];
  for (const [index, server] of named.entries())
    refuse(['hosts', index], `names ${server} again`, named.indexOf(server) < index);
  refuse(['prefer'], 'chooses among `hosts`, and there are none', !hosts && prefer !== null);
  refuse(
    ['maxLagBytes'],
    'is about `prefer: standby`, which is not asked for',
    maxLagBytes !== null && prefer !== 'standby',
  );
  const own = 'belongs to one server, and cannot stand beside `hosts`';
  refuse(['ssh', 'host'], own, hosts !== null && ssh.host !== null);
  refuse(['rsyncd', 'address'], own, hosts !== null && rsyncd.address !== null);
  return broken;
}
