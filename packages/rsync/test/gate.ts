/**
 * A gate on the way to a server: it lets some bytes through and then waits, so that a test can do something in the middle
 * of a transfer, whatever the speed of the machine.
 */
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';

export interface Gate extends AsyncDisposable {
  readonly address: string;
  readonly port: number;
  /** Settles when the first bytes have passed and the rest waits. */
  readonly reached: Promise<void>;
  readonly open: () => void;
  readonly breakConnections: () => void;
}

/** @param to Where the connections lead. */
export async function openGate(
  to: { readonly address: string; readonly port: number },
  { bytesBefore }: { readonly bytesBefore: number },
): Promise<Gate> {
  const reached = Promise.withResolvers<void>();
  const opened = Promise.withResolvers<void>();
  const clientSockets = new Set<Socket>();
  const server = createServer((client) => {
    clientSockets.add(client);
    const upstream = connect(to.port, to.address);
    let bytesPassed = 0;
    const gate = new Transform({
      highWaterMark: 65_536,
      transform(chunk: Buffer, _encoding, callback) {
        bytesPassed += chunk.length;
        if (bytesPassed <= bytesBefore) {
          callback(null, chunk);
          return;
        }
        reached.resolve();
        void opened.promise.then(() => {
          callback(null, chunk);
        });
      },
    });
    // Either end may hang up at any time; the transfer tells the story.
    pipeline(client, upstream).catch(() => {});
    pipeline(upstream, gate, client).catch(() => {});
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { address, port } = server.address() as AddressInfo;
  return {
    address,
    port,
    reached: reached.promise,
    open: opened.resolve,
    breakConnections: () => {
      for (const client of clientSockets) client.destroy();
    },
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close');
      server.close();
      for (const client of clientSockets) client.destroy();
      await closed;
    },
  };
}
