/** Listening: addresses, TLS, and what is said about them. Certificates are made by openssl, as an operator does. */
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { scratchDirectory } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { startApi } from '../src/start-api.ts';
import { NO_STORE, recordingLogger, TOKENS } from './harness.ts';

const run = promisify(execFile);

async function start(listen: string, tls: Parameters<typeof startApi>[0]['tls'] = null) {
  const { lines, logger } = recordingLogger();
  const api = await startApi({ listen, tls, tokens: TOKENS, store: NO_STORE, logger });
  return {
    url: api.url,
    warnings: () => lines.filter(({ level }) => level === 40).map(({ msg }) => msg),
    [Symbol.asyncDispose]: async () => {
      await api[Symbol.asyncDispose]();
    },
  };
}

/** A certificate for 127.0.0.1 and one for a client, both of one authority. */
async function makeCertificates(directory: string) {
  const file = (name: string) => join(directory, name);
  const openssl = async (...args: string[]) => await run('openssl', args, { cwd: directory });
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  await openssl('req', '-x509', ...curve, '-subj', '/CN=ca', '-keyout', 'ca.key', '-out', 'ca.crt');
  await writeFile(file('san'), 'subjectAltName=IP:127.0.0.1');
  for (const name of ['server', 'client']) {
    const csr = `${name}.csr`;
    await openssl('req', ...curve, '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', csr);
    const signer = ['-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'san'];
    await openssl('x509', '-req', '-in', csr, ...signer, '-out', `${name}.crt`);
  }
  return file;
}

async function getStatus(url: string, tls: object): Promise<number | undefined> {
  const { promise, resolve, reject } = Promise.withResolvers<number | undefined>();
  const call = request(`${url}/healthz`, { ...tls, agent: false }, (response) => {
    response.resume();
    resolve(response.statusCode);
  });
  call.on('error', reject);
  call.end();
  return await promise;
}

test('on loopback nothing is warned of, and the URL has the real port', async () => {
  await using api = await start('127.0.0.1:0');
  expect(api.url).toMatch(/^http:\/\/127\.0\.0\.1:[1-9]\d*$/);
  expect((await fetch(`${api.url}/healthz`)).status).toBe(200);
  expect(api.warnings()).toEqual([]);
});

test('plain HTTP beyond loopback is warned of', async () => {
  await using api = await start('0.0.0.0:0');
  expect(api.warnings()).toEqual([expect.stringContaining('plain HTTP beyond loopback')]);
  expect((await fetch(`${api.url}/healthz`)).status).toBe(200);
});

test('a port that is taken is refused with the address and a hint', async () => {
  await using api = await start('127.0.0.1:0');
  const listen = new URL(api.url).host;
  await expect(start(listen)).rejects.toMatchObject({
    code: 'CONFIGURATION_INVALID',
    message: `cannot listen on ${listen}`,
    facts: { reason: 'EADDRINUSE' },
    hint: expect.stringContaining('api.listen') as string,
  });
});

test('with TLS only the authority of the certificate has to be trusted', async () => {
  await using scratch = await scratchDirectory();
  const file = await makeCertificates(scratch.path);
  await using api = await start('127.0.0.1:0', {
    certFile: file('server.crt'),
    keyFile: file('server.key'),
    clientCaFile: null,
  });

  expect(api.url).toMatch(/^https:/);
  expect(await getStatus(api.url, { ca: await readFile(file('ca.crt')) })).toBe(200);
  await expect(getStatus(api.url, {})).rejects.toThrow(/certificate/);
});

test('with a client authority nobody gets in without its certificate', async () => {
  await using scratch = await scratchDirectory();
  const file = await makeCertificates(scratch.path);
  await using api = await start('127.0.0.1:0', {
    certFile: file('server.crt'),
    keyFile: file('server.key'),
    clientCaFile: file('ca.crt'),
  });
  const ca = await readFile(file('ca.crt'));
  const own = { cert: await readFile(file('client.crt')), key: await readFile(file('client.key')) };

  expect(await getStatus(api.url, { ca, ...own })).toBe(200);
  await expect(getStatus(api.url, { ca })).rejects.toThrow();
});

test.each([
  ['is not there', 'absent.crt'],
  ['is none', 'san'],
])('a certificate file that %s is named', async (_what, name) => {
  await using scratch = await scratchDirectory();
  const file = await makeCertificates(scratch.path);
  await expect(
    start('127.0.0.1:0', {
      certFile: file(name),
      keyFile: file('server.key'),
      clientCaFile: null,
    }),
  ).rejects.toMatchObject({
    code: 'CONFIGURATION_INVALID',
    hint: expect.stringContaining(file(name)) as string,
  });
});
