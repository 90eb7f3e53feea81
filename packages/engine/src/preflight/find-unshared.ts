/**
 * Whether the clone can share blocks with its source, found out for each of its directories by doing it (R10.3): what
 * filesystems say of themselves does not tell.
 */
import { join } from 'node:path';
import { CloneError, changeRequest } from '@pgcloned/contract';
import { probeReflink } from '@pgcloned/reflink';
import type { CloneRun } from '../clone-run.ts';
import { deepestExisting } from '../target/space.ts';
import { withRemedies } from './another-place.ts';
import type { Findings, Seen } from './check.ts';

/** Finds `REFLINK_UNSUPPORTED` for each that cannot, or tells that it will be copied if that was asked for. */
export async function findUnshared(
  { plan }: CloneRun,
  { claim, facts, tablespaces }: Pick<Seen, 'claim' | 'facts' | 'tablespaces'>,
  { error, notice }: Findings,
): Promise<Pick<Seen, 'unshared'>> {
  if (plan.spec.method !== 'reflink') return { unshared: [] };
  const pairs = [
    { source: facts.dataDirectory, probed: facts.dataDirectory, build: claim.data.build },
    ...tablespaces.map(({ source, build }) => ({
      source,
      probed: join(source, facts.tablespaceDirectoryName),
      build,
    })),
  ];
  const unshared: string[] = [];
  for (const { source, probed, build } of pairs) {
    try {
      await probeReflink(probed, await deepestExisting(build));
    } catch (thrown) {
      if (!(thrown instanceof CloneError) || thrown.code !== 'REFLINK_UNSUPPORTED') throw thrown;
      unshared.push(source);
      if (plan.spec.transfer.fallback === 'fail')
        error(withRemedies(thrown, [changeRequest({ transfer: { fallback: 'copy' } })]));
      else notice({ code: 'REFLINK_FALLBACK', message: `${thrown.message}: ${source} is copied` });
    }
  }
  return { unshared };
}
