/** The harness's end of hold-phases.ts: catches a clone at the place that is asked for, and lets all others pass. */
import { once } from 'node:events';
import { chown } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { partsUser, runsAsRoot } from '@pgcloned/testbed';
import type { HoldName } from './holds.ts';

export interface Gate extends AsyncDisposable {
  readonly socketPath: string;
  /** Holds the next clone that comes there; asked for before it comes. */
  readonly catchAt: (name: HoldName) => Catch;
}

export interface Catch extends Disposable {
  /** Settles once a clone is held. */
  readonly held: Promise<void>;
  /** Lets it go, and nothing is caught there any more. */
  readonly letGo: () => void;
}

export async function openGate(socketPath: string): Promise<Gate> {
  const wanted = new Map<string, (socket: Socket) => void>();
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    // A worker that was killed while it was held.
    socket.on('error', () => {});
    socket.once('data', (name: Buffer) => {
      const caught = wanted.get(name.toString().trim());
      if (caught === undefined) socket.destroy();
      else caught(socket);
    });
  });
  server.listen(socketPath);
  await once(server, 'listening');
  if (runsAsRoot) await chown(socketPath, partsUser.uid, partsUser.gid);
  return {
    socketPath,
    catchAt: (name) => {
      const held = Promise.withResolvers<void>();
      const caught: Socket[] = [];
      wanted.set(name, (socket) => {
        wanted.delete(name);
        caught.push(socket);
        held.resolve();
      });
      const letGo = () => {
        wanted.delete(name);
        for (const socket of caught) socket.destroy();
      };
      return { held: held.promise, letGo, [Symbol.dispose]: letGo };
    },
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}
