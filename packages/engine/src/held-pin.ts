/**
 * The pin of a clone, made again when it is lost.
 *
 * An administrator, `max_slot_wal_keep_size` (R5.3) or an error in its session (R5.2) takes it away without ending the
 * clone. What the source writes until the replica streams must be kept all the same (R5.7): else the clone would be
 * complete, and could never catch up. The new pin reserves from the last checkpoint of the source on. While the stream
 * lives, a gap before that shows by itself; once it has ended, it is looked for and said.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { toCloneError } from '@pgcloned/contract';
import { type ConnectionSettings, pinWal, type WalPin, walBytesBetween } from '@pgcloned/postgres';
import type { CloneRun } from './clone-run.ts';

/** The server needs a moment to drop the slot of the old session, which has the same name. */
const PAUSES_MS = [200, 500, 1_000, 2_000, 5_000, 10_000, 10_000, 10_000];

/** `restartLsn` and the other facts are those of the first. */
export interface HeldPin
  extends Pick<WalPin, 'slotName' | 'restartLsn' | 'restartTimeline' | 'advance' | 'release'> {
  /**
   * The stream has ended: WAL is here up to this position, and from there on only the pin keeps it for the replica. It
   * advances no more.
   */
  readonly streamEnded: (lsn: string) => void;
}

/** @throws What `pinWal` throws, for the first one. */
export async function holdPin(
  { name, signal, observer, warn }: Pick<CloneRun, 'name' | 'signal' | 'observer' | 'warn'>,
  settings: ConnectionSettings,
): Promise<HeldPin> {
  const options = { slotName: name, applicationName: name };
  const first = await pinWal(settings, { ...options, signal });
  const releasing = new AbortController();
  const ending = AbortSignal.any([signal, releasing.signal]);
  const pauses = [...PAUSES_MS];
  let current = first;
  let hereUpTo: string | null = null;
  let renewing: Promise<void> = Promise.resolve();

  const renew = async (reason: string): Promise<void> => {
    observer.log('warn', 'the pin is lost and is made again', { reason });
    for (let pauseMs = pauses.shift(); pauseMs !== undefined; pauseMs = pauses.shift()) {
      await delay(pauseMs, undefined, { signal: ending }).catch(() => {});
      if (ending.aborted) return;
      try {
        current = await pinWal(settings, { ...options, signal: ending });
      } catch (error) {
        observer.log('debug', 'the pin could not be made again', {
          reason: toCloneError(error).message,
        });
        continue;
      }
      hold(current);
      const to = current.restartLsn;
      // While the stream lives it misses nothing, or ends and says so.
      if (hereUpTo !== null && walBytesBetween({ from: hereUpTo, to }) > 0n)
        warn(`the pin was lost; the source may have removed WAL between ${hereUpTo} and ${to}`);
      return;
    }
    warn(`${reason}; the source may now remove WAL that is still needed`);
  };
  const hold = (held: WalPin) => {
    void held.lost.then((error) => {
      if (!ending.aborted) renewing = renewing.then(async () => await renew(error.message));
    });
  };
  hold(first);
  return {
    slotName: first.slotName,
    restartLsn: first.restartLsn,
    restartTimeline: first.restartTimeline,
    streamEnded: (lsn) => {
      hereUpTo = lsn;
    },
    advance: async (lsn) => {
      // Beyond it nothing more arrives, and the replica asks for the segment that it lies in from its beginning.
      if (hereUpTo === null) await current.advance(lsn);
    },
    release: async () => {
      releasing.abort();
      await renewing;
      await current.release();
    },
  };
}
