/**
 * How quickly files come from the source, measured by fetching some the way a clone does: so it also shows that the port
 * or the SSH server lets them through.
 *
 * They are files of the largest database, go to a temporary directory here and are thrown away. It is an estimate: a
 * second does not tell what else the link will carry, nor how fast the disks are once no cache helps.
 */
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { CloneError, changeRequest } from '@pgcloned/contract';
import { listFiles, type SourceEntry } from '@pgcloned/rsync';
import type { CloneRun } from '../clone-run.ts';
import { openTransport, type Transport } from '../copy/transport.ts';
import { makeTemporaryDirectory } from '../temporary-directory.ts';
import { withRemedies } from './another-place.ts';
import type { LinkSpeed, Seen } from './check.ts';

const PROBE_BYTES_MAX = 64 * 2 ** 20;
const PROBE_MS_MAX = 2_000;
const STREAMS_MAX = 4;

/** Of pg_default, since those of other tablespaces lie elsewhere. */
const LARGEST_DATABASE = `
  SELECT oid::text AS "oid" FROM pg_database
   WHERE dattablespace = (SELECT oid FROM pg_tablespace WHERE spcname = 'pg_default')
   ORDER BY pg_database_size(oid) DESC LIMIT 1`;

/**
 * @returns Null if nothing came: there is nothing to fetch, or too little of it came in time.
 * @throws {CloneError} Why no file comes.
 */
export async function measureLink(
  run: CloneRun,
  { host, session, facts }: Pick<Seen, 'host' | 'session' | 'facts'>,
): Promise<LinkSpeed | null> {
  const { signal, plan } = run;
  const [database] = await session.query<{ oid: string }>(LARGEST_DATABASE, [], signal);
  const directory = join(facts.dataDirectory, 'base', database?.oid ?? '1');
  const listed = await listFiles(host.ssh(), {
    roots: [directory],
    stallMs: plan.host.stallMs,
    signal,
  });
  const files = someOf(listed[0] ?? []);
  if (files.length === 0) return null;
  await using temporary = await makeTemporaryDirectory();
  const from = { module: 'probe', source: directory };
  await using transport = await openTransport(
    run,
    { host, temporaryWalDirectory: temporary.path },
    [from],
  ).catch((error: unknown) => {
    throw offerSsh(error);
  });
  const measured = await fetchSome(run, { transport, from, files, destination: temporary.path });
  if (measured.probedBytes === 0) return null;
  const { maxRate } = plan.spec.transfer;
  const rate = measured.bytesPerSecond;
  return { ...measured, bytesPerSecond: maxRate === null ? rate : Math.min(rate, maxRate) };
}

async function fetchSome(
  { plan, signal }: CloneRun,
  {
    transport,
    from,
    files,
    destination,
  }: {
    readonly transport: Transport;
    readonly from: { readonly module: string; readonly source: string };
    readonly files: readonly SourceEntry[];
    readonly destination: string;
  },
): Promise<LinkSpeed> {
  const { compression, workers } = plan.spec.transfer;
  const streams = Math.min(STREAMS_MAX, workers ?? availableParallelism(), files.length);
  const enough = new AbortController();
  const timer = setTimeout(() => {
    enough.abort(ENOUGH);
  }, PROBE_MS_MAX);
  const startedMs = performance.now();
  let bytes = 0;
  try {
    const ends = await Promise.allSettled(
      Array.from({ length: streams }, async (_, worker) => {
        await transport.transfer({
          worker,
          from,
          through: transport,
          names: files.filter((_file, index) => index % streams === worker).map(({ name }) => name),
          send: 'whole',
          compare: 'ignore-times',
          destination,
          compression: compression === 'auto' ? 'none' : compression,
          timeoutMs: plan.host.stallMs,
          inheritedFds: [],
          onBytes: (more) => {
            bytes += more;
            if (bytes > PROBE_BYTES_MAX) enough.abort(ENOUGH);
          },
          onWireBytes: () => {},
          signal: AbortSignal.any([signal, enough.signal]),
        });
      }),
    );
    for (const end of ends)
      if (end.status === 'rejected' && end.reason !== ENOUGH) throw end.reason;
  } finally {
    clearTimeout(timer);
  }
  const seconds = (performance.now() - startedMs) / 1000;
  return { probedBytes: bytes, bytesPerSecond: Math.round(bytes / seconds) };
}

/** Ends a transfer that has told what it could. */
const ENOUGH = new Error('enough was fetched');

/** The largest that fit into the probe; where all are larger, the smallest, of which the beginning is fetched. */
function someOf(entries: readonly SourceEntry[]): readonly SourceEntry[] {
  const files = entries
    .filter(({ type, bytes }) => type === 'file' && bytes > 0)
    .toSorted((one, other) => other.bytes - one.bytes);
  const some: SourceEntry[] = [];
  let left = PROBE_BYTES_MAX;
  for (const file of files) {
    if (file.bytes > left) continue;
    some.push(file);
    left -= file.bytes;
  }
  return some.length > 0 ? some : files.slice(-1);
}

/** Where no port is open, the connection that we have serves as well. */
function offerSsh(error: unknown): unknown {
  if (!(error instanceof CloneError) || error.code !== 'RSYNCD_FAILED') return error;
  return withRemedies(error, [changeRequest({ transfer: { transport: 'ssh' } })]);
}
