/** Listens for requests, as `pgcloned api` and `pgcloned up` do. */
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { BlockList, isIP } from 'node:net';
import { createSecureContext } from 'node:tls';
import { CloneError, type Configuration, type Token } from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';
import type { FastifyBaseLogger } from 'fastify';
import { buildApi, type TlsMaterial } from './app.ts';

export interface StartApiOptions extends Pick<Configuration['api'], 'listen' | 'tls'> {
  /** Also those that are not in the configuration, such as the one made at the first start. */
  readonly tokens: readonly Token[];
  /** Must stay open until the API is disposed of. */
  readonly store: CloneStore;
  readonly logger: FastifyBaseLogger;
}

export interface RunningApi extends AsyncDisposable {
  /** Where it can be reached from this machine, with the port that port 0 became. */
  readonly url: string;
}

/**
 * Disposing of it ends open event streams, answers what is being answered, and closes the port.
 *
 * @throws {CloneError} `CONFIGURATION_INVALID` if the address cannot be listened on or a TLS file cannot be used.
 */
export async function startApi({
  listen,
  tls,
  tokens,
  store,
  logger,
}: StartApiOptions): Promise<RunningApi> {
  const { host, port } = parseListen(listen);
  const material = await readTls(tls);
  const app = await buildApi({ store, tokens, logger, tls: material });
  try {
    await app.listen({ host, port, listenTextResolver: () => 'listening' });
  } catch (cause) {
    await app.close();
    throw new CloneError('CONFIGURATION_INVALID', `cannot listen on ${listen}`, {
      facts: { listen, reason: (cause as NodeJS.ErrnoException).code ?? String(cause) },
      hint: 'Choose an address of this machine and a free port for api.listen.',
      cause,
    });
  }
  const { address, port: actualPort } = app.server.address() as AddressInfo;
  if (material === null && !isLoopback(address)) {
    logger.warn(
      { listen },
      'plain HTTP beyond loopback: tokens and records can be read on the way; set api.tls',
    );
  }
  const scheme = material === null ? 'http' : 'https';
  return {
    url: `${scheme}://${reachable(address)}:${String(actualPort)}`,
    [Symbol.asyncDispose]: async () => {
      await app.close();
    },
  };
}

function parseListen(listen: string): { host: string; port: number } {
  const [, host = '', port = ''] = /^(.*):(\d+)$/.exec(listen) ?? [];
  return { host: host.replace(/^\[|\]$/g, ''), port: Number(port) };
}

async function readTls(tls: Configuration['api']['tls']): Promise<TlsMaterial | null> {
  if (tls === null) return null;
  const read = async (key: string, path: string): Promise<Buffer> => {
    try {
      return await readFile(path);
    } catch (cause) {
      throw new CloneError('CONFIGURATION_INVALID', `cannot read api.tls.${key}`, {
        facts: { path, reason: (cause as NodeJS.ErrnoException).code ?? String(cause) },
        hint: `Let the user that runs the API read ${path}.`,
        cause,
      });
    }
  };
  const cert = await read('certFile', tls.certFile);
  const key = await read('keyFile', tls.keyFile);
  const clientCa = tls.clientCaFile === null ? null : await read('clientCaFile', tls.clientCaFile);
  try {
    createSecureContext({ cert, key, ...(clientCa !== null && { ca: clientCa }) });
  } catch (cause) {
    throw new CloneError('CONFIGURATION_INVALID', 'cannot use the files of api.tls', {
      facts: { certFile: tls.certFile, keyFile: tls.keyFile, clientCaFile: tls.clientCaFile },
      hint: `See whether ${tls.certFile} is a certificate in PEM, and ${tls.keyFile} its key without a passphrase.`,
      cause,
    });
  }
  return { cert, key, clientCa };
}

function isLoopback(address: string): boolean {
  const loopback = new BlockList();
  loopback.addSubnet('127.0.0.0', 8, 'ipv4');
  loopback.addAddress('::1', 'ipv6');
  return loopback.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4');
}

function reachable(address: string): string {
  if (address === '0.0.0.0') return '127.0.0.1';
  if (address === '::') return '[::1]';
  return isIP(address) === 6 ? `[${address}]` : address;
}
