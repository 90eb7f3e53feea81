/**
 * What the processes of this machine are told: `pgcloned.yaml`, overridden by the environment. Read once, then handed down.
 *
 * A variable is named after the path of its key: `api.listen` is PGCLONED_API_LISTEN, `worker.stallSeconds` is
 * PGCLONED_WORKER_STALL_SECONDS; lists are comma separated, an empty value counts as not set. Sources and tokens have
 * names of their own and stay in the file. An unknown key or variable stops the start, because a setting that is
 * silently not applied is worse than a daemon that does not run.
 *
 * This is the only module that reads `process.env`.
 */
import { existsSync, statSync } from 'node:fs';
import { hostname, userInfo } from 'node:os';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import {
  CloneError,
  Configuration,
  LOG_LEVELS,
  type LocalSource,
  type LogLevel,
  localSource,
  type SourceConfiguration,
} from '@pgcloned/contract';
import type { Environment, GlobalOptions } from './invocation.ts';
import {
  type LocatedYaml,
  locateWithOrigins,
  mistakesError,
  mistakesOf,
  parseYaml,
  readYaml,
} from './located-yaml.ts';
import { setIn } from './nested-value.ts';

/** The configuration with every default filled in and every path absolute. */
export interface Settings {
  /** Null: there was no file. */
  readonly file: string | null;
  readonly host: string;
  readonly stateDirectory: string;
  /** `embedded` or a URL. */
  readonly redis: string;
  readonly api: Configuration['api'];
  readonly worker: Omit<Configuration['worker'], 'dataRoots'> & {
    readonly dataRoots: readonly string[];
  };
  readonly sources: Readonly<Record<string, SourceConfiguration>>;
}

const SYSTEM_FILE = '/etc/pgcloned/pgcloned.yaml';

/** Debian's place for clusters. */
const USUAL_DATA_ROOT = '/var/lib/postgresql';

/** The keys that a variable may override, and how its text is read. */
const OVERRIDES: readonly (readonly [key: string, kind: 'text' | 'number' | 'list'])[] = [
  ['host', 'text'],
  ['stateDirectory', 'text'],
  ['redis', 'text'],
  ['api.listen', 'text'],
  ['api.tls.certFile', 'text'],
  ['api.tls.keyFile', 'text'],
  ['api.tls.clientCaFile', 'text'],
  ['worker.concurrency', 'number'],
  ['worker.dataRoots', 'list'],
  ['worker.postgresBin', 'text'],
  ['worker.start.method', 'text'],
  ['worker.allowedSettings', 'list'],
  ['worker.stallSeconds', 'number'],
  ['worker.noSpaceSeconds', 'number'],
  ['worker.leaseSeconds', 'number'],
  ['worker.ports', 'text'],
];

/** Variables that are no keys: read by the command line itself. */
const OWN_VARIABLES = ['PGCLONED_CONFIG', 'PGCLONED_URL', 'PGCLONED_TOKEN', 'PGCLONED_LOG_LEVEL'];

/** What Kubernetes puts into every container beside a Service called `pgcloned…`. */
const KUBERNETES_VARIABLE = /_SERVICE_(?:HOST|PORT(?:_.*)?)$|_PORT(?:_\d+_.*)?$/;

/**
 * The variables of this process, with a HOME that is ours.
 *
 * `runuser` and `setpriv` leave the HOME of root. It is set right for the whole process, because libraries look for it too.
 */
export function readEnvironment(): Environment {
  process.env.HOME = ownHome(process.env.HOME);
  return Object.freeze({ ...process.env });
}

/** The variables that `readSettings` knows, for the help. */
export function overrideVariables(): readonly { readonly name: string; readonly key: string }[] {
  return OVERRIDES.map(([key]) => ({ name: variableOf(key), key }));
}

/**
 * @param file What `--config` names; else PGCLONED_CONFIG, else /etc/pgcloned/pgcloned.yaml if there is one.
 * @throws {CloneError} `CONFIGURATION_INVALID`, naming file, line and key, or the variable.
 */
export async function readSettings(
  environment: Environment,
  file: string | undefined,
): Promise<Settings> {
  const path = file ?? (environment.PGCLONED_CONFIG || undefined);
  const used = path ?? (existsSync(SYSTEM_FILE) ? SYSTEM_FILE : null);
  const yaml =
    used === null
      ? parseYaml('the default configuration', '', 'CONFIGURATION_INVALID')
      : await readYaml(used, 'CONFIGURATION_INVALID');
  const configuration = validate(yaml, environment);
  const { stateDirectory, worker, api, sources } = configuration;
  const base = used === null ? '/' : dirname(resolve(used));
  const home = homeOf(environment);
  return {
    file: used === null ? null : resolve(used),
    host: configuration.host ?? hostname(),
    stateDirectory: stateDirectory ?? join(stateHomeOf(environment), 'pgcloned'),
    redis: configuration.redis,
    api: {
      ...api,
      tls: api.tls && {
        certFile: resolve(base, api.tls.certFile),
        keyFile: resolve(base, api.tls.keyFile),
        clientCaFile: api.tls.clientCaFile && resolve(base, api.tls.clientCaFile),
      },
    },
    worker: {
      ...worker,
      dataRoots: worker.dataRoots ?? (existsSync(USUAL_DATA_ROOT) ? [USUAL_DATA_ROOT] : []),
    },
    sources: Object.fromEntries(
      Object.entries(sources).map(([name, source]) => [
        name,
        completeSource(source, { base, home }),
      ]),
    ),
  };
}

function validate(yaml: LocatedYaml, environment: Environment): Configuration {
  const variables = override(yaml.content, environment);
  yaml.content.host ??= hostname();
  const parsed = Configuration.safeParse(yaml.content);
  if (parsed.success) return parsed.data;
  throw mistakesError('CONFIGURATION_INVALID', mistakesOf(parsed.error), {
    locate: locateWithOrigins(yaml, variables),
    hint: `Correct it, or take the key out. ${yaml.name === SYSTEM_FILE ? 'Another file is chosen with --config.' : 'apps/worker/README.md describes every key.'}`,
  });
}

/**
 * Puts the variables into `content`.
 *
 * @returns Where each overridden key came from, as words for an error.
 */
function override(
  content: Record<string, unknown>,
  environment: Environment,
): ReadonlyMap<string, string> {
  const origins = new Map<string, string>();
  for (const [key, kind] of OVERRIDES) {
    const name = variableOf(key);
    const text = environment[name];
    if (text === undefined || text === '') continue;
    setIn(content, key.split('.'), readAs(kind, text));
    origins.set(key, `environment variable ${name}`);
  }
  const known = new Set([...OVERRIDES.map(([key]) => variableOf(key)), ...OWN_VARIABLES]);
  for (const name of Object.keys(environment)) {
    if (!name.startsWith('PGCLONED_') || known.has(name) || KUBERNETES_VARIABLE.test(name))
      continue;
    throw new CloneError('CONFIGURATION_INVALID', `unknown environment variable ${name}`, {
      facts: { known: [...known].join(' ') },
      hint: 'Unset it or correct its name.',
    });
  }
  return origins;
}

function readAs(kind: 'text' | 'number' | 'list', text: string): unknown {
  if (kind === 'list') return text.split(',').map((item) => item.trim());
  // What is no number is left as it is: the schema says so with the variable's name.
  return kind === 'number' && Number.isFinite(Number(text)) ? Number(text) : text;
}

function variableOf(key: string): string {
  return `PGCLONED_${key.replace(/[A-Z]/g, '_$&').replaceAll('.', '_').toUpperCase()}`;
}

/** The same source with file names relative to `base` (or beginning with `~/`) made absolute, and with all defaults. */
export function completeSource(
  given: LocalSource | SourceConfiguration,
  { base, home }: { readonly base: string; readonly home: string },
): SourceConfiguration {
  const source = 'ssh' in given ? given : localSource(given, { defaultUser: ownName() });
  const absolute = (file: string | null) =>
    file === null ? null : file.startsWith('~/') ? join(home, file.slice(2)) : resolve(base, file);
  return {
    ...source,
    passFile: absolute(source.passFile),
    sslRootCertFile: absolute(source.sslRootCertFile),
    ssh: {
      ...source.ssh,
      privateKeyFile: absolute(source.ssh.privateKeyFile),
      knownHostsFile: absolute(source.ssh.knownHostsFile),
    },
    replication: { ...source.replication, passFile: absolute(source.replication.passFile) },
  };
}

function ownName(): string {
  try {
    return userInfo().username;
  } catch {
    // A container may run us as a user id that its passwd file does not know.
    return 'postgres';
  }
}

/** HOME as psql takes it, unless it is another user's. */
function ownHome(home: string | undefined): string {
  if (!home) return passwdHome();
  try {
    const owner = statSync(home, { throwIfNoEntry: false })?.uid;
    return owner === undefined || owner === process.getuid?.() ? home : passwdHome();
  } catch {
    // What we may not even look at is another user's.
    return passwdHome();
  }
}

/** The XDG specification wants a relative path to be ignored: it would mean another place in every directory. */
function stateHomeOf(environment: Environment): string {
  const { XDG_STATE_HOME = '' } = environment;
  return isAbsolute(XDG_STATE_HOME) ? XDG_STATE_HOME : join(homeOf(environment), '.local', 'state');
}

/** For paths that begin with it. */
export function homeOf({ HOME = '/' }: Environment): string {
  return HOME;
}

function passwdHome(): string {
  try {
    return userInfo().homedir;
  } catch {
    // A container may run us as a user id that its passwd file does not know.
    return '/';
  }
}

/**
 * What `--debug` or `--log-level` says; else PGCLONED_LOG_LEVEL, else `fallback`.
 *
 * @throws {CloneError} `CONFIGURATION_INVALID` if it is none of the levels.
 */
export function readLogLevel(
  environment: Environment,
  { debug, logLevel }: Pick<GlobalOptions, 'debug' | 'logLevel'>,
  fallback: LogLevel,
): LogLevel {
  if (debug === true) return 'debug';
  const text = logLevel ?? (environment.PGCLONED_LOG_LEVEL || fallback);
  const level = LOG_LEVELS.find((candidate) => candidate === text);
  if (level !== undefined) return level;
  throw new CloneError('CONFIGURATION_INVALID', `not a log level: ${text}`, {
    hint: `The levels are ${LOG_LEVELS.join(', ')}.`,
  });
}
