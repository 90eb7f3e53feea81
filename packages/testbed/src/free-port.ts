/**
 * Ports for servers of tests.
 *
 * They lie below the range that the kernel hands to outgoing connections (32768 and up), so that only another test can
 * take one between the look and the bind; whoever binds tries again with another port then.
 */
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:net';

const PORT_FIRST = 20_000;
const PORT_LAST = 32_000;
const ATTEMPTS_MAX = 50;

/** A TCP port that nobody listens on at this moment. */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
    const port = randomInt(PORT_FIRST, PORT_LAST);
    if (await canListen(port)) return port;
  }
  throw new Error(`no free port among ${String(ATTEMPTS_MAX)}`);
}

async function canListen(port: number): Promise<boolean> {
  const server = createServer();
  try {
    server.listen(port);
    await once(server, 'listening');
    return true;
  } catch {
    // Whatever the reason, this port is not ours to have.
    return false;
  } finally {
    server.close();
  }
}
