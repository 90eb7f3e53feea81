/**
 * What the engine is given: the caller's wish, how the source is reached, and what this host allows.
 *
 * Everything is resolved here; the engine reads neither files of configuration nor the environment.
 */
import type { CloneSpec, SourceConfiguration, StartMethod } from '@pgcloned/contract';

export type SourceRole = 'primary' | 'standby';

export interface HostPolicy {
  /** Directories below which clones may lie. Null: whoever started this decides alone (`pgcloned run`). */
  readonly dataRoots: readonly string[] | null;
  /** Where the programs of a major version are: a path with `{major}` in it. */
  readonly postgresBin: string;
  readonly start: StartMethod;
  /** Settings that a request may make beyond the safe list of the contract. */
  readonly allowedSettings: readonly string[];
  /** How long nothing may move before that is an error, in milliseconds. */
  readonly stallMs: number;
  /** How long the copy may wait for free space, in milliseconds. */
  readonly noSpaceMs: number;
  /** How long the rsync daemon outlives our last sign of life, in milliseconds. */
  readonly leaseMs: number;
  /** From which a clone gets a port where none is asked for, the last one included. */
  readonly ports: { readonly first: number; readonly last: number };
  /** Directories and files of ours that no clone may touch: the state directory, keys, passfiles. */
  readonly protectedPaths: readonly string[];
  readonly defaultSshKeyFiles: readonly string[];
  readonly defaultKnownHostsFiles: readonly string[];
  readonly sshAgentSocket: string | null;
}

export interface ClonePlan {
  /** 32 hexadecimal digits. */
  readonly id: string;
  readonly attempt: number;
  /** What the first of its attempts copied, as the observer of an earlier worker was told; null: nobody knows of one. */
  readonly begunFrom: SourceRole | null;
  readonly spec: Omit<CloneSpec, 'source'>;
  /** For messages only. */
  readonly sourceName: string;
  readonly source: SourceConfiguration;
  /** The clone whose data directory a local source must still be; null: it is none of ours. */
  readonly originClone: string | null;
  /** Whether a clone that may lie in the target must stay: asked when the target is looked at, and again before it is given up. */
  readonly isProtected: (cloneId: string) => Promise<boolean>;
  /** A password that is in no file: PGPASSWORD of `pgcloned run`. Never stored. */
  readonly password: string | null;
  readonly host: HostPolicy;
  /** Keeps the temporary WAL directory, to look into. */
  readonly keepTemporary: boolean;
}
