/**
 * Asks for a replication connection and closes it again.
 *
 * A role may have every right and yet be shut out: `all` in pg_hba.conf does not match replication (R3.10), and the WAL
 * senders may be taken. Only trying tells, and unlike `pg_receivewal` the answer here carries an SQLSTATE, which does not
 * depend on the language of the server. So this serves both preflight and the explanation of a receiver that died.
 */
import { connectClient, destroyClient } from './connect.ts';
import type { ConnectionSettings } from './connection-settings.ts';

export interface ReplicationIdentity {
  readonly systemIdentifier: string;
  /** The timeline that the server writes now. */
  readonly timeline: number;
}

/**
 * @throws {CloneError} `SOURCE_RIGHTS_MISSING` with the exact line for pg_hba.conf or the grant, `SOURCE_NO_WAL_SENDER`,
 *   `SOURCE_AUTHENTICATION_FAILED`, `SOURCE_UNREACHABLE`.
 */
export async function probeReplication(
  settings: ConnectionSettings,
  { applicationName, signal }: { readonly applicationName: string; readonly signal: AbortSignal },
): Promise<ReplicationIdentity> {
  const client = await connectClient(settings, { applicationName, replication: true, signal });
  try {
    const { rows } = await client.query<{ systemid: string; timeline: number | string }>(
      'IDENTIFY_SYSTEM',
    );
    const [answer] = rows;
    if (answer === undefined) throw new Error('the server answered nothing');
    await client.end();
    // An int8 since 16, and those arrive as text.
    return { systemIdentifier: answer.systemid, timeline: Number(answer.timeline) };
  } finally {
    await destroyClient(client);
  }
}
