/**
 * How a cluster on this host is reached: nobody has to say it, its `postmaster.pid` does.
 */
import { realpath, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { CloneError, type ServerAddress } from '@pgcloned/contract';
import { isServerRunning } from '@pgcloned/postgres';
import { codeOf, ifMissing } from '@pgcloned/process';
import { pathBesideLock } from './target/locks.ts';
import { readMarker } from './target/marker.ts';
import { isUnready } from './target/unready.ts';

/** Addresses on which a server listens for everybody, and how it is reached there. */
const EVERYWHERE: Readonly<Record<string, string>> = {
  '*': 'localhost',
  '0.0.0.0': '127.0.0.1',
  '::': '::1',
};

/**
 * @param o.originClone The clone that must lie there; null: whatever lies there.
 * @returns The directory of its socket, or an address if it has none.
 * @throws {CloneError} `SOURCE_UNREACHABLE` if no server runs there, `SOURCE_UNKNOWN` if that clone is gone,
 *   `SOURCE_RIGHTS_MISSING` if the files are not ours: the server of the clone has to own them.
 */
export async function findLocalServer(
  dataDirectory: string,
  { originClone }: { readonly originClone: string | null },
): Promise<ServerAddress> {
  if (originClone !== null) await refuseOtherContents(dataDirectory, originClone);
  await refuseForeignFiles(dataDirectory);
  if (await isStillMade(dataDirectory)) throw stillMade(dataDirectory);
  const server = await isServerRunning(dataDirectory);
  if (server === null) throw noServer(`no server runs on ${dataDirectory}`, dataDirectory);
  const { port, socketDirectory, listenAddress } = server;
  if (socketDirectory === (await pathBesideLock(await realpath(dataDirectory), 'boot')))
    throw stillMade(dataDirectory);
  if (port === null)
    throw noServer(`the server on ${dataDirectory} does not listen yet`, dataDirectory);
  if (socketDirectory !== null) return { host: resolve(dataDirectory, socketDirectory), port };
  if (listenAddress === null)
    throw noServer(`the server on ${dataDirectory} listens nowhere`, dataDirectory);
  return { host: EVERYWHERE[listenAddress] ?? listenAddress, port };
}

async function refuseForeignFiles(dataDirectory: string): Promise<void> {
  const stats = await stat(dataDirectory).catch((cause: unknown) => {
    throw new CloneError('SOURCE_UNREACHABLE', `${dataDirectory} cannot be found`, {
      facts: { dataDirectory, reason: codeOf(cause) ?? null },
      hint: 'Name the data directory of a running server on this host.',
      cause,
    });
  });
  if (stats.uid === process.getuid?.()) return;
  throw new CloneError('SOURCE_RIGHTS_MISSING', `${dataDirectory} belongs to another user`, {
    facts: { dataDirectory, ownerUid: stats.uid, ownUid: process.getuid?.() ?? null },
    hint: 'Run pgcloned as the user that owns the data directory.',
  });
}

async function refuseOtherContents(dataDirectory: string, cloneId: string): Promise<void> {
  const real = await realpath(dataDirectory).catch(ifMissing(null));
  const found = real === null ? null : ((await readMarker(real, 'data'))?.cloneId ?? null);
  if (found === cloneId) return;
  // Nobody waits for it: it does not come back.
  throw new CloneError('SOURCE_UNKNOWN', `${dataDirectory} is not clone ${cloneId} any more`, {
    facts: { dataDirectory, clone: cloneId, found },
    hint: 'It was removed, moved or replaced. Name a clone that is still there.',
  });
}

async function isStillMade(dataDirectory: string): Promise<boolean> {
  return await isUnready(dataDirectory).catch((cause: unknown) => {
    throw new CloneError(
      'SOURCE_RIGHTS_MISSING',
      `the settings of the cluster in ${dataDirectory} cannot be read`,
      {
        facts: { dataDirectory, reason: codeOf(cause) },
        hint: `Make everything in ${dataDirectory} belong to the user that owns it (chown --recursive).`,
        cause,
      },
    );
  });
}

/** Its private server believes everybody, and what `onReady` masks would be copied as it was. */
function stillMade(dataDirectory: string): CloneError {
  return noServer(`the clone in ${dataDirectory} is still being made`, dataDirectory);
}

function noServer(message: string, dataDirectory: string): CloneError {
  return new CloneError('SOURCE_UNREACHABLE', message, {
    facts: { dataDirectory },
    hint: 'Start it and see its log: a clone is made of a server that runs.',
  });
}
