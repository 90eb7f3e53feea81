/** Channels over an SSH connection: each is a command of its own, or a TCP connection that the server makes for us. */
import { addAbortListener } from 'node:events';
import type { CloneError } from '@pgcloned/contract';
import type ssh2 from 'ssh2';

export interface Session {
  readonly client: ssh2.Client;
  /** `SOURCE_LOST` once the connection is gone, else null. */
  readonly lost: () => CloneError | null;
}

/**
 * @param o.opened Called at once with the channel, before anything that came with its confirmation is seen.
 * @throws {CloneError} `SOURCE_LOST` if the connection is gone, else what `o.refused` makes of the server's refusal.
 */
export async function openChannel<Opened>(
  session: Session,
  o: {
    readonly request: (
      answered: (error: Error | undefined, channel: ssh2.ClientChannel) => void,
    ) => void;
    readonly opened: (channel: ssh2.ClientChannel) => Opened;
    readonly refused: (cause: unknown) => CloneError;
    readonly signal: AbortSignal;
  },
): Promise<Opened> {
  const { signal } = o;
  signal.throwIfAborted();
  const opening = Promise.withResolvers<Opened>();
  try {
    o.request((error, channel) => {
      if (error !== undefined) opening.reject(error);
      // Aborted meanwhile: nobody wants it any more.
      else if (signal.aborted) channel.close();
      else opening.resolve(o.opened(channel));
    });
  } catch (error) {
    // ssh2 throws if the connection is closed already.
    opening.reject(error as Error);
  }
  using _ = addAbortListener(signal, () => {
    opening.reject(signal.reason as Error);
  });
  try {
    return await opening.promise;
  } catch (cause) {
    signal.throwIfAborted();
    throw session.lost() ?? o.refused(cause);
  }
}
