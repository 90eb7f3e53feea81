/** What a clone takes of its filesystems. */
import { isWithin } from '@pgcloned/process';
import { measureSpace, type Space } from '@pgcloned/reflink';
import { resolveReal } from '../target/guard.ts';
import type { InstancePlan } from './look.ts';

/**
 * All its files, wherever they lie.
 *
 * @returns Null if its filesystem does not tell what is shared.
 * @throws The signal's reason if it aborts.
 */
export async function measureInstance(
  { spec, filled }: Pick<InstancePlan, 'spec' | 'filled'>,
  signal: AbortSignal,
): Promise<Space | null> {
  const { real } = await resolveReal(spec.target.dataDirectory);
  const elsewhere = filled
    .filter(({ kind, final }) => kind !== 'temporary-wal' && !isWithin(final, real))
    .map(({ final }) => final);
  return await measureSpace([real, ...new Set(elsewhere)], { signal });
}
