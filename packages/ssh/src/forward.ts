/**
 * TCP connections that the SSH server makes for us and that go through our connection to it, as those of `ssh -L`.
 *
 * Both ends can close their half. When the SSH connection is lost the stream ends and closes, like a socket.
 */
import type { Duplex } from 'node:stream';
import { CloneError } from '@pgcloned/contract';
import { openChannel, type Session } from './channel.ts';

export interface ForwardTarget {
  /** As the SSH server resolves it. */
  readonly host: string;
  readonly port: number;
}

/** By RFC 4254: the others are that the server could not connect, and that it lacks resources. */
const OPEN_ADMINISTRATIVELY_PROHIBITED = 1;

/**
 * @param label The SSH server, for messages.
 * @throws {CloneError} `SOURCE_LOST` if the connection is gone, `SOURCE_UNREACHABLE` if sshd forbids it or cannot connect.
 */
export async function openForward(
  session: Session,
  {
    target: { host, port },
    label,
    signal,
  }: { readonly target: ForwardTarget; readonly label: string; readonly signal: AbortSignal },
): Promise<Duplex> {
  return await openChannel<Duplex>(session, {
    request: (answered) => {
      session.client.forwardOut('127.0.0.1', 0, host, port, answered);
    },
    opened: (channel) => channel,
    refused: (cause) => {
      const { reason } = cause as { readonly reason?: unknown };
      const isForbidden = reason === OPEN_ADMINISTRATIVELY_PROHIBITED;
      return new CloneError(
        'SOURCE_UNREACHABLE',
        isForbidden
          ? `sshd of ${label} forbids the way to ${host}:${String(port)}`
          : `sshd of ${label} gets no connection to ${host}:${String(port)}`,
        {
          facts: { sshServer: label, host, port, reason: String(cause) },
          hint: isForbidden
            ? `Allow it in sshd_config there: AllowTcpForwarding local, and if there is a PermitOpen, PermitOpen ${host}:${String(port)}.`
            : `Check that the server runs and that its listen_addresses and port take connections to ${host}:${String(port)} from there.`,
          cause,
        },
      );
    },
    signal,
  });
}
