/**
 * Bare rsyncs: what is left of a copy when nobody lists, watches, checks or publishes anything. The floor of every clone by
 * rsync: equal lists, as many at a time as we run, a daemon without authentication, and the same syncfs every 0.7 s.
 */
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import {
  freePort,
  makeDirectory,
  type OtherHost,
  runAsPartsUser,
  type Source,
  startServerProcess,
  writePartsFile,
} from '@pgcloned/testbed';
import { runThere } from './clone-on-host.ts';

const SYNC_INTERVAL_MS = 700;

export interface RsyncTimes {
  readonly copyMs: number;
  /** With the last syncfs. */
  readonly totalMs: number;
}

/**
 * @param o.host Where they run; null: here.
 * @param o.options More of rsync's own.
 */
export async function bareRsyncs(
  { primary, sshd, configuration: { host: address } }: Source,
  o: {
    readonly target: string;
    readonly workers: number;
    readonly host: OtherHost | null;
    readonly options: readonly string[];
  },
): Promise<RsyncTimes> {
  const { target, host } = o;
  const lists = await equalLists(primary.dataDirectory, sshd.directory, o.workers);
  const port = await freePort();
  const url = `rsync://${address}:${String(port)}`;
  const configFile = join(sshd.directory, 'rsyncd.conf');
  await writePartsFile(
    configFile,
    `use chroot = no\naddress = ${address}\nport = ${String(port)}\n[data]\npath = ${primary.dataDirectory}\n`,
  );
  const daemon = await startServerProcess({
    argv: ['rsync', '--daemon', '--no-detach', `--config=${configFile}`],
    logFile: join(sshd.directory, 'rsyncd.log'),
    deathSignal: 'TERM',
    isReady: async () => {
      const { status } = await runAsPartsUser(['rsync', `${url}/`], { accept: 'any' });
      return status === 0;
    },
  });
  try {
    await makeDirectory(target);
    const startedAt = performance.now();
    let isCopying = true;
    const syncing = (async () => {
      while (isCopying) {
        await runAsPartsUser(['sync', '--file-system', target]);
        await delay(SYNC_INTERVAL_MS);
      }
    })();
    await Promise.all(
      lists.map((list) =>
        runThere(host, [
          ...['rsync', '-a', '--whole-file', '--inplace', '--from0', `--files-from=${list}`],
          ...o.options,
          ...[`${url}/data/`, target],
        ]),
      ),
    );
    const copyMs = performance.now() - startedAt;
    isCopying = false;
    await runAsPartsUser(['sync', '--file-system', target]);
    const totalMs = performance.now() - startedAt;
    await syncing;
    return { copyMs, totalMs };
  } finally {
    await daemon.stop('SIGTERM');
  }
}

/** What a clone copies, in as many lists as there are workers: the largest file to the list that is shortest so far. */
async function equalLists(
  dataDirectory: string,
  directory: string,
  workers: number,
): Promise<string[]> {
  const { stdout } = await runAsPartsUser([
    ...['find', dataDirectory, '-type', 'f', '-not', '-path', `${dataDirectory}/pg_wal/*`],
    ...['-not', '-name', 'postmaster.*', '-not', '-name', 'pg_internal.init*'],
    ...['-printf', '%s\\t%P\\0'],
  ]);
  const files = stdout
    .toString()
    .split('\0')
    .filter((line) => line !== '')
    .map((line) => ({ bytes: Number.parseInt(line, 10), name: line.slice(line.indexOf('\t') + 1) }))
    .toSorted((a, b) => b.bytes - a.bytes);
  const lists = Array.from({ length: workers }, () => ({ bytes: 0, names: [] as string[] }));
  for (const file of files) {
    const shortest = lists.reduce((least, list) => (list.bytes < least.bytes ? list : least));
    shortest.bytes += file.bytes;
    shortest.names.push(file.name);
  }
  const paths = lists.map((_, index) => join(directory, `list-${String(index)}`));
  for (const [index, path] of paths.entries())
    await writePartsFile(path, `${lists[index]?.names.join('\0') ?? ''}\0`);
  return paths;
}
