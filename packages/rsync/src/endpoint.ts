/**
 * Where the files of one directory of the source come from: a module of an rsync daemon, or an rsync that SSH starts there.
 *
 * Over SSH there is no daemon: it could not allow less than the shell that we are given, and would leave files with a secret
 * behind. The rsync there only sends. It ends by itself when the connection ends, and when nothing moves for as long as the
 * timeout says, of which it is told, too (R7.8). The directory is entered by the shell, quoted for it, so rsync sees no
 * more of its path than `.`, whatever is in it or links to it.
 */
import type { ErrorFacts } from '@pgcloned/contract';
import { quoteForShell } from '@pgcloned/process';
import { rsyncUrl } from './rsync-url.ts';

interface DaemonEndpoint {
  readonly kind: 'daemon';
  /** Where to connect: the daemon itself, or what forwards to it. */
  readonly address: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly module: string;
}

interface SshEndpoint {
  readonly kind: 'ssh';
  /** What runs a command on the source host, as `rsync --rsh` takes it. */
  readonly remoteShell: string;
  /** Where `remoteShell` has to be called. */
  readonly workingDirectory: string;
  /** On the source host. */
  readonly directory: string;
}

export type TransferEndpoint = DaemonEndpoint | SshEndpoint;

/** A connection that takes longer is dropped by a firewall. */
const CONNECT_SECONDS_MAX = 20;

/** On standard error: what a login shell said of its own accord comes before. */
export const SENDING = 'pgcloned sends';
export const NO_DIRECTORY = 'pgcloned cannot enter the directory';

/** As in `remote.sh`, which also finds rsync there. */
const SEND = `cd -- "$1" || { echo '${NO_DIRECTORY}' >&2; exit 1; }
shift
echo '${SENDING}' >&2
exec env LC_ALL=C PATH="\${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin" rsync "$@"`;

/** How rsync is told to come there. */
export function approach(
  endpoint: TransferEndpoint,
  { timeoutSeconds }: { readonly timeoutSeconds: number },
): {
  readonly options: readonly string[];
  readonly source: string;
  readonly env: Readonly<Record<string, string>>;
  readonly cwd?: string;
} {
  const timeout = `--timeout=${String(timeoutSeconds)}`;
  if (endpoint.kind === 'daemon') {
    const { user, address, port, module, password } = endpoint;
    return {
      options: [timeout, `--contimeout=${String(Math.min(timeoutSeconds, CONNECT_SECONDS_MAX))}`],
      source: rsyncUrl({ user, address, port, module }),
      env: { LC_ALL: 'C', RSYNC_PASSWORD: password },
    };
  }
  const send = ['exec', 'sh', '-c', SEND, 'pgcloned', endpoint.directory].map(quoteForShell);
  return {
    // Not -s: nothing in rsync's own arguments needs hiding from the shell, and what came later than the command line, the
    // timeout above all, might never come.
    options: [timeout, `--rsh=${endpoint.remoteShell}`, `--rsync-path=${send.join(' ')}`],
    source: 'source:./',
    env: { LC_ALL: 'C' },
    cwd: endpoint.workingDirectory,
  };
}

/** For errors. */
export function factsOf(endpoint: TransferEndpoint): ErrorFacts {
  return endpoint.kind === 'daemon'
    ? { address: endpoint.address, module: endpoint.module }
    : { directory: endpoint.directory };
}
