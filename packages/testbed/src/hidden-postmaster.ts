/** A server as it looks from another container: no such process there, and no such shared memory. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writePartsFile } from './parts-user.ts';
import type { PostgresServer } from './postgres-server.ts';

/** Restarts `server` and changes its postmaster.pid; disposing puts that back. It has to be within a minute. */
export async function hidePostmaster(server: PostgresServer): Promise<AsyncDisposable> {
  const pidFile = join(server.dataDirectory, 'postmaster.pid');
  // The server looks at this file every minute, and ends when it finds another pid: the next minute begins now.
  await server.stop('fast');
  await server.start();
  const lines = (await readFile(pidFile, 'utf8')).split('\n');
  await writePartsFile(pidFile, lines.with(0, '4194305').with(6, '0 0').join('\n'));
  return {
    [Symbol.asyncDispose]: async () => {
      await writePartsFile(pidFile, lines.join('\n'));
    },
  };
}
