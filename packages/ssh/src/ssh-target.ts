/** Where an SSH connection goes, and as whom. */
import type { ErrorFacts } from '@pgcloned/contract';

export interface SshTarget {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  /** The key that was asked for by name: tried first, and an error if it cannot be used. */
  readonly privateKeyFile: string | null;
  /** Tried last; those that do not exist or cannot be used are passed over. */
  readonly defaultKeyFiles: readonly string[];
  /** The socket of an ssh-agent whose keys are tried between the two. */
  readonly agentSocket: string | null;
  /** Files that do not exist are passed over. A new key belongs into the first. */
  readonly knownHostsFiles: readonly string[];
  /** Takes any host key. */
  readonly insecure: boolean;
}

/** `postgres@db1:22` */
export function labelOf({ user, host, port }: SshTarget): string {
  return `${user}@${host.includes(':') ? `[${host}]` : host}:${String(port)}`;
}

export function factsOf({
  user,
  host,
  port,
}: Pick<SshTarget, 'user' | 'host' | 'port'>): ErrorFacts {
  return { host, port, user };
}
