/**
 * What `pgcloned run` was asked for, put together from SPEC, options and environment, in this order of force: options,
 * SPEC, then the PG* variables for what neither says, as psql does it.
 *
 * The variables speak only of a source that is spelled out. One of the configuration is complete as it stands there, and
 * gets PGPASSWORD only if it names no file with passwords.
 */
import { dirname, join, resolve } from 'node:path';
import {
  CloneError,
  type CloneSpec,
  RunSpec,
  refuseUnfitSource,
  refuseUnsupported,
  type SourceConfiguration,
} from '@pgcloned/contract';
import { completeSource, homeOf, type Settings } from './config.ts';
import type { Environment } from './invocation.ts';
import {
  type LocatedYaml,
  locateWithOrigins,
  mistakesError,
  mistakesOf,
  parseYaml,
  readYaml,
} from './located-yaml.ts';
import { getIn, setIn } from './nested-value.ts';
import { attributeOf, longFlagOf, readOption, SPEC_OPTIONS } from './spec-options.ts';

export interface RunRequest {
  readonly spec: Omit<CloneSpec, 'source'>;
  /** For messages: the source's name or host. */
  readonly sourceName: string;
  readonly source: SourceConfiguration;
  readonly password: string | null;
}

const PG_VARIABLES: readonly (readonly [name: string, path: string])[] = [
  ['PGHOST', 'source.host'],
  ['PGPORT', 'source.port'],
  ['PGUSER', 'source.user'],
  ['PGDATABASE', 'source.database'],
  ['PGPASSFILE', 'source.passFile'],
  ['PGSSLMODE', 'source.sslmode'],
  ['PGSSLROOTCERT', 'source.sslRootCertFile'],
];

/** Variables that lead psql to another server; to ignore them would clone the wrong one. */
const REFUSED_VARIABLES = ['PGSERVICE', 'PGHOSTADDR'];

/**
 * @param options The command's options as commander keeps them.
 * @throws {CloneError} `REQUEST_INVALID` naming file and line, option or variable; `SOURCE_UNKNOWN`; `NOT_SUPPORTED`.
 */
export async function readRunRequest({
  file,
  places = [],
  options,
  environment,
  settings,
}: {
  readonly file: string | undefined;
  /** ORIGIN and CLONE: data directories on this host. */
  readonly places?: readonly string[];
  readonly options: Readonly<Record<string, unknown>>;
  readonly environment: Environment;
  readonly settings: Settings;
}): Promise<RunRequest> {
  const yaml =
    file === undefined
      ? parseYaml('options', '', 'REQUEST_INVALID')
      : await readYaml(file, 'REQUEST_INVALID');
  const origins = new Map<string, string>();
  applyOptions(yaml.content, options, origins);
  applyPlaces(yaml.content, places, origins);
  applyVariables(yaml.content, environment, origins);
  const { source: asked, target, ...rest } = validate(yaml, origins);
  if (target.host !== undefined && target.host !== settings.host) {
    throw new CloneError(
      'REQUEST_INVALID',
      `target.host is ${target.host}, but this is ${settings.host}`,
      {
        hint: 'Leave target.host out, or run this on that host.',
      },
    );
  }
  const spec = { ...rest, target: { ...target, host: settings.host } };
  refuseUnsupported(spec);
  if (spec.ttl !== null || spec.protected) {
    throw new CloneError('NOT_SUPPORTED', 'ttl and protected need a worker', {
      facts: { field: spec.ttl === null ? 'protected' : 'ttl' },
      hint: 'Leave them out and remove the clone by hand, or ask the API of a worker for it (`pgcloned clone create`).',
    });
  }
  const named = 'name' in asked;
  const source = named
    ? sourceOf(asked.name, settings)
    : completeSource(asked, {
        base: file === undefined || file === '-' ? process.cwd() : dirname(resolve(file)),
        home: homeOf(environment),
      });
  refuseUnfitSource(spec, source);
  refuseSocketWithoutSsh(source);
  return {
    spec,
    sourceName: named ? asked.name : nameOf(source),
    source,
    password: (!(named && source.passFile !== null) && environment.PGPASSWORD) || null,
  };
}

function applyOptions(
  content: Record<string, unknown>,
  options: Readonly<Record<string, unknown>>,
  origins: Map<string, string>,
): void {
  for (const option of Object.values(SPEC_OPTIONS).flat()) {
    const given = options[attributeOf(option)];
    if (given === undefined) continue;
    const value = readOption(option, given);
    const before = getIn(content, option.path);
    const merged =
      option.read === 'pairs' && typeof before === 'object' && before !== null
        ? { ...before, ...(value as object) }
        : value;
    setIn(content, option.path, merged);
    origins.set(option.path.join('.'), `option ${longFlagOf(option)}`);
  }
}

/** All that a clone on this host needs: only one method makes it of a data directory alone. */
function applyPlaces(
  content: Record<string, unknown>,
  [origin, clone]: readonly string[],
  origins: Map<string, string>,
): void {
  if (origin === undefined) return;
  if (clone === undefined) {
    throw new CloneError('REQUEST_INVALID', `where ${origin} shall be cloned to is missing`, {
      hint: 'Give both: pgcloned run --method reflink ORIGIN CLONE.',
    });
  }
  const put = (path: string, value: unknown, from: string) => {
    setIn(content, path.split('.'), value);
    origins.set(path, from);
  };
  put('source.local', true, 'ORIGIN');
  put('source.dataDirectory', resolve(origin), 'ORIGIN');
  put('target.dataDirectory', resolve(clone), 'CLONE');
  if (content.method === undefined) put('method', 'reflink', 'ORIGIN');
}

function applyVariables(
  content: Record<string, unknown>,
  environment: Environment,
  origins: Map<string, string>,
): void {
  const { source = {} } = content;
  // A local one tells by itself how it is reached.
  const isSpelledOut =
    typeof source === 'object' && source !== null && !('name' in source) && !('local' in source);
  if (!isSpelledOut) return;
  for (const name of REFUSED_VARIABLES) {
    if (!environment[name]) continue;
    throw new CloneError('NOT_SUPPORTED', `environment variable ${name} is not supported`, {
      hint: 'Unset it, and spell the source out with --host, --port and --user.',
    });
  }
  for (const [name, key] of PG_VARIABLES) {
    const path = key.split('.');
    const text = environment[name];
    if (!text || getIn(content, path) !== undefined) continue;
    if (name === 'PGHOST' && getIn(content, ['source', 'hosts']) !== undefined) continue;
    // A file that is named has the last word for the engine; for psql the variable has.
    if (name === 'PGPASSFILE' && environment.PGPASSWORD) continue;
    setIn(content, path, key === 'source.port' && Number(text) ? Number(text) : text);
    origins.set(key, `environment variable ${name}`);
  }
  const isNamed = ['host', 'hosts'].some((key) => getIn(content, ['source', key]) !== undefined);
  if (!isNamed) {
    throw new CloneError('REQUEST_INVALID', 'no source is named', {
      hint: 'Give --host (or PGHOST), --source with a name of the configuration, a SPEC with -f, or ORIGIN and CLONE for a clone on this host.',
    });
  }
  // ssh would ask the agent too; a source that is spelled out may say `agent: false`.
  if (environment.SSH_AUTH_SOCK && getIn(content, ['source', 'ssh', 'agent']) === undefined) {
    setIn(content, ['source', 'ssh', 'agent'], true);
  }
}

function validate(yaml: LocatedYaml, origins: ReadonlyMap<string, string>): RunSpec {
  const parsed = RunSpec.safeParse(yaml.content);
  if (parsed.success) return parsed.data;
  throw mistakesError('REQUEST_INVALID', mistakesOf(parsed.error), {
    locate: locateWithOrigins(yaml, origins),
    hint: 'See `pgcloned run --help` for the options.',
  });
}

function sourceOf(name: string, { sources, file }: Settings): SourceConfiguration {
  const source = sources[name];
  if (source === undefined) {
    throw new CloneError('SOURCE_UNKNOWN', `no source is called ${name}`, {
      facts: { configuration: file, sources: Object.keys(sources).join(' ') },
      hint: 'Add it to `sources` of the configuration, or spell it out with --host.',
    });
  }
  return source;
}

const nameOf = ({ host, hosts, dataDirectory }: SourceConfiguration): string =>
  host ?? hosts?.join(', ') ?? dataDirectory ?? '';

/** A directory of sockets is a fine host for psql, but SSH needs a name. */
function refuseSocketWithoutSsh({ host, ssh }: SourceConfiguration): void {
  if (host?.startsWith('/') !== true || ssh.host !== null) return;
  throw new CloneError('REQUEST_INVALID', `source.host is the socket directory ${host}`, {
    hint: 'Name the SSH server of the source with --ssh-host, or give a host name with --host.',
  });
}

/** Files that no clone may lie in or beside: what we were told to read. */
export function filesOf({
  passFile,
  sslRootCertFile,
  ssh,
  replication,
  onReady,
}: SourceConfiguration): readonly string[] {
  return [
    passFile,
    sslRootCertFile,
    ssh.privateKeyFile,
    ssh.knownHostsFile,
    replication.passFile,
    ...onReady,
  ].filter((file) => file !== null);
}

/** The keys that OpenSSH would try, and the files in which it would look a host key up. */
export function sshDefaults(home: string): {
  readonly keyFiles: readonly string[];
  readonly knownHostsFiles: readonly string[];
} {
  const directory = join(home, '.ssh');
  return {
    keyFiles: ['id_ed25519', 'id_ecdsa', 'id_rsa'].map((name) => join(directory, name)),
    knownHostsFiles: [
      join(directory, 'known_hosts'),
      join(directory, 'known_hosts2'),
      '/etc/ssh/ssh_known_hosts',
    ],
  };
}
