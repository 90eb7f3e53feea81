/**
 * From the record of a clone to what the engine is given: the name of the source becomes a way to reach it, which only
 * this host knows.
 */
import { type UserInfo, userInfo } from 'node:os';
import { join } from 'node:path';
import {
  type Clone,
  CloneError,
  type Configuration,
  LocalSource,
  localSource,
  nameOfSource,
  portsOf,
  type SourceConfiguration,
} from '@pgcloned/contract';
import type { ClonePlan, HostPolicy } from '@pgcloned/engine';
import type { RunJournal } from './run-journal.ts';

export interface HostConfiguration {
  /** The file of the configuration, which no clone may touch; null: there is none. */
  readonly file: string | null;
  readonly stateDirectory: string;
  readonly worker: Omit<Configuration['worker'], 'dataRoots'> & {
    readonly dataRoots: readonly string[];
  };
  readonly sources: Readonly<Record<string, SourceConfiguration>>;
  /** Where the agent listens that sources with `ssh.agent` use; null: there is none. */
  readonly sshAgentSocket: string | null;
}

/**
 * @param journal Of the clones of this host: others can be made of them, and in their place.
 * @throws {CloneError} `SOURCE_UNKNOWN`.
 */
export async function planClone(
  clone: Pick<Clone, 'id' | 'attempt' | 'spec' | 'resetOf'>,
  host: HostConfiguration,
  journal: Pick<RunJournal, 'read'>,
): Promise<ClonePlan> {
  const { source: wanted, ...spec } = clone.spec;
  const source =
    wanted.clone === undefined
      ? namedSource(wanted.name ?? '', host)
      : await cloneAsSource(wanted.clone, host, journal);
  return {
    id: clone.id,
    attempt: clone.attempt,
    begunFrom: null,
    spec,
    sourceName: nameOfSource(wanted),
    source,
    originClone: wanted.clone ?? null,
    isProtected: async (id) =>
      id !== clone.resetOf && (await journal.read(id))?.clone.instance.protected === true,
    password: null,
    host: hostPolicy(host),
    keepTemporary: false,
  };
}

function namedSource(name: string, { sources }: HostConfiguration): SourceConfiguration {
  const source = Object.hasOwn(sources, name) ? sources[name] : undefined;
  if (source !== undefined) return source;
  throw new CloneError('SOURCE_UNKNOWN', `this host has no source ${name}`, {
    facts: { source: name, known: Object.keys(sources).join(', ') },
    hint: 'Use one of the known names, or add the source to the configuration of the worker.',
  });
}

/** Its user and database are those of what it was cloned from, if that was a cluster of this host, too. */
async function cloneAsSource(
  id: string,
  host: HostConfiguration,
  origins: Pick<RunJournal, 'read'>,
): Promise<SourceConfiguration> {
  const origin = (await origins.read(id))?.clone;
  if (origin?.state !== 'succeeded') {
    throw new CloneError('SOURCE_UNKNOWN', `this host has no finished clone ${id}`, {
      facts: { clone: id, state: origin?.state ?? null },
      hint: 'Name a clone that has succeeded on the same host.',
    });
  }
  const { source, target } = origin.spec;
  const { dataDirectory } = target;
  const before =
    source.clone === undefined
      ? host.sources[source.name ?? '']
      : await cloneAsSource(source.clone, host, origins).catch(() => undefined);
  return before?.local === true
    ? // What it was to be made ready by has run, and must not run twice.
      { ...before, dataDirectory, onReady: [] }
    : localSource(LocalSource.parse({ local: true, dataDirectory }), {
        defaultUser: ownAccount()?.username ?? 'postgres',
      });
}

export function hostPolicy({
  file,
  stateDirectory,
  worker,
  sources,
  sshAgentSocket,
}: HostConfiguration): HostPolicy {
  const files = Object.values(sources).flatMap(filesOf);
  return {
    dataRoots: worker.dataRoots,
    postgresBin: worker.postgresBin,
    start: worker.start,
    allowedSettings: worker.allowedSettings,
    stallMs: worker.stallSeconds * 1000,
    noSpaceMs: worker.noSpaceSeconds * 1000,
    leaseMs: worker.leaseSeconds * 1000,
    ports: portsOf(worker.ports),
    protectedPaths: [stateDirectory, ...(file === null ? [] : [file]), ...files],
    // A daemon uses the key that it was given; only `pgcloned run` tries those of its user.
    defaultSshKeyFiles: [],
    defaultKnownHostsFiles: [...userKnownHosts(), '/etc/ssh/ssh_known_hosts'],
    sshAgentSocket,
  };
}

function filesOf({ passFile, sslRootCertFile, ssh, replication, onReady }: SourceConfiguration) {
  const files = [
    passFile,
    sslRootCertFile,
    ssh.privateKeyFile,
    ssh.knownHostsFile,
    replication.passFile,
    ...onReady,
  ];
  return files.filter((file) => file !== null);
}

/** Below the home that passwd knows, as OpenSSH does it. */
function userKnownHosts(): readonly string[] {
  const account = ownAccount();
  return account === null ? [] : [join(account.homedir, '.ssh', 'known_hosts')];
}

function ownAccount(): UserInfo<string> | null {
  try {
    return userInfo();
  } catch {
    // A container may run us as a user id that its passwd file does not know.
    return null;
  }
}
