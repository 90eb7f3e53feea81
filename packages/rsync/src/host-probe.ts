/** What has to be known about the source host before anything is done there. Changes nothing. */
import type { Compression } from '@pgcloned/contract';
import type { CommandRunner } from '@pgcloned/process';
import { compressionsIn } from './compressions.ts';
import { askRemoteText } from './remote-script.ts';

/** A shell and a few tools are started; a loaded host needs a second or two for that. */
const PROBE_LIMIT_MS = 30_000;

export interface HostProbe {
  /** `3.2.7`; null if there is no rsync. */
  readonly rsyncVersion: string | null;
  readonly compressions: readonly Compression[];
  /** Listing needs it. */
  readonly hasGnuFind: boolean;
  /** What installs packages there: `/usr/bin/apt-get`; null if we know none. */
  readonly installer: string | null;
  readonly user: string;
  /** The clock of the source host, in nanoseconds since 1970: times of its files compare with this one only. */
  readonly now: bigint;
  readonly dataDirectoryReadable: boolean;
  /** The lines of postmaster.pid; empty if there is none. */
  readonly postmasterPid: readonly string[];
}

/** @throws {CloneError} `REMOTE_COMMAND_FAILED` if the script cannot run there, and what the runner throws. */
export async function probeHost(
  runner: CommandRunner,
  o: { readonly dataDirectory: string; readonly signal: AbortSignal },
): Promise<HostProbe> {
  const answer = await askRemoteText(runner, 'probe', [o.dataDirectory], {
    signal: o.signal,
    limitMs: PROBE_LIMIT_MS,
  });
  const lines = answer.split('\n');
  const heading = lines.indexOf('postmaster.pid');
  const facts = new Map(
    lines.slice(0, heading).map((line) => {
      const separator = line.indexOf('=');
      return [line.slice(0, separator), line.slice(separator + 1)] as const;
    }),
  );
  const fact = (name: string) => facts.get(name) ?? '';
  return {
    rsyncVersion: fact('rsync') || null,
    compressions: compressionsIn(fact('compressions')),
    hasGnuFind: fact('find').includes('GNU'),
    installer: fact('installer') || null,
    user: fact('user'),
    now: BigInt(/^\d+$/.exec(fact('now'))?.[0] ?? 0),
    dataDirectoryReadable: fact('readable') === 'yes',
    postmasterPid: lines.slice(heading + 1, lines.at(-1) === '' ? -1 : undefined),
  };
}
