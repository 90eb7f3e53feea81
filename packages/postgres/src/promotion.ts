/**
 * A standby that becomes a primary while it is copied.
 *
 * Its backup is then worth nothing (R3.7): it was to end with WAL of the old timeline, and the files go on with the new one.
 * The sessions survive a promotion, so nobody notices who does not ask.
 */
import { CloneError } from '@pgcloned/contract';
import type { Session } from './session.ts';

export async function isInRecovery(session: Session, signal: AbortSignal): Promise<boolean> {
  const [row] = await session.query<{ inRecovery: boolean }>(
    'SELECT pg_is_in_recovery() AS "inRecovery"',
    [],
    signal,
  );
  if (row === undefined) throw new Error('the server answered nothing');
  return row.inRecovery;
}

export function promoted({ settings: { host, port } }: Pick<Session, 'settings'>): CloneError {
  return new CloneError('SOURCE_PROMOTED', 'the source was promoted while it was copied', {
    facts: { host, port },
    hint: 'Clone again into the same directory, from what is a primary now or from one of its standbys. A copy by rsync is kept, and only what differs is sent.',
  });
}
