/**
 * From the record of a clone to what the engine is given: the name of the source becomes a way to reach it, which only
 * this host knows.
 */
import { userInfo } from 'node:os';
import { join } from 'node:path';
import {
  type Clone,
  CloneError,
  type Configuration,
  type SourceConfiguration,
} from '@pgcloned/contract';
import type { ClonePlan, HostPolicy } from '@pgcloned/engine';

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

/** @throws {CloneError} `SOURCE_UNKNOWN`. */
export function planClone(
  clone: Pick<Clone, 'id' | 'attempt' | 'spec'>,
  host: HostConfiguration,
): ClonePlan {
  const { source: wanted, ...spec } = clone.spec;
  const source = Object.hasOwn(host.sources, wanted.name) ? host.sources[wanted.name] : undefined;
  if (source === undefined) {
    throw new CloneError('SOURCE_UNKNOWN', `this host has no source ${wanted.name}`, {
      facts: { source: wanted.name, known: Object.keys(host.sources).join(', ') },
      hint: 'Use one of the known names, or add the source to the configuration of the worker.',
    });
  }
  return {
    id: clone.id,
    attempt: clone.attempt,
    begunFrom: null,
    spec,
    sourceName: wanted.name,
    source,
    password: null,
    host: hostPolicy(host),
    keepTemporary: false,
  };
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
    protectedPaths: [stateDirectory, ...(file === null ? [] : [file]), ...files],
    // A daemon uses the key that it was given; only `pgcloned run` tries those of its user.
    defaultSshKeyFiles: [],
    defaultKnownHostsFiles: [...userKnownHosts(), '/etc/ssh/ssh_known_hosts'],
    sshAgentSocket,
  };
}

function filesOf({ passFile, sslRootCertFile, ssh, replication }: SourceConfiguration) {
  const files = [
    passFile,
    sslRootCertFile,
    ssh.privateKeyFile,
    ssh.knownHostsFile,
    replication.passFile,
  ];
  return files.filter((file) => file !== null);
}

/** Below the home that passwd knows, as OpenSSH does it. */
function userKnownHosts(): readonly string[] {
  try {
    return [join(userInfo().homedir, '.ssh', 'known_hosts')];
  } catch {
    // A container may run us as a user id that its passwd file does not know.
    return [];
  }
}
