/** Who may call what. No handler gets as far as its store here, so there is none. */

import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import type { Role } from '@pgcloned/contract';
import Fastify, { type FastifyInstance } from 'fastify';
import { expect, test } from 'vitest';
import { authentication } from '../src/plugins/authentication.ts';
import { asAdmin, asOperator, asViewer, NO_STORE, openApi, SECRETS, TOKENS } from './harness.ts';

/** Every documented call, and the least role that may make it. A new call has to be added here. */
const CALLS: Readonly<Record<string, Role | 'open'>> = {
  'GET /healthz': 'open',
  'GET /readyz': 'open',
  'POST /v1/clones': 'operator',
  'GET /v1/clones': 'viewer',
  'GET /v1/clones/{id}': 'viewer',
  'PATCH /v1/clones/{id}': 'operator',
  'DELETE /v1/clones/{id}': 'operator',
  'POST /v1/clones/{id}/cancel': 'operator',
  'POST /v1/clones/{id}/start': 'operator',
  'POST /v1/clones/{id}/stop': 'operator',
  'POST /v1/clones/{id}/extend': 'operator',
  'POST /v1/clones/{id}/reset': 'operator',
  'GET /v1/clones/{id}/events': 'viewer',
  'GET /v1/clones/{id}/logs': 'viewer',
  'POST /v1/preflights': 'operator',
  'GET /v1/hosts': 'viewer',
  'GET /v1/hosts/{name}': 'viewer',
};

/** Everything else that is served: the document and its page. */
const OPEN_PATHS = ['/openapi.json', '/docs', '/docs/json', '/docs/static/index.html'];

const AUTHORIZATIONS: Readonly<Record<Role, { authorization: string }>> = {
  viewer: asViewer,
  operator: asOperator,
  admin: asAdmin,
};
const ROLES: readonly Role[] = ['viewer', 'operator', 'admin'];

function requestOf(call: string, headers: Record<string, string> = {}) {
  const [method = '', path = ''] = call.split(' ');
  const url = path.replace('{id}', '0'.repeat(32)).replace('{name}', 'replica-1');
  return { method: method as 'GET', url, headers };
}

test('every documented call is known to this test, and the document says who may make it', async () => {
  await using api = await openApi(NO_STORE);
  const { paths = {} } = api.app.swagger() as unknown as OpenapiDocument;

  const documented = Object.fromEntries(
    Object.entries(paths).flatMap(([path, operations]) =>
      Object.entries(operations).map(([method, operation]) => [
        `${method.toUpperCase()} ${path}`,
        operation.security === undefined
          ? /Role: `(\w+)`/.exec(operation.description ?? '')?.[1]
          : 'open',
      ]),
    ),
  );

  expect(documented).toEqual(CALLS);
});

test.each(Object.entries(CALLS).filter(([, role]) => role !== 'open'))(
  '%s asks for a token, and for role %s at least',
  async (call, least) => {
    await using api = await openApi(NO_STORE);

    const withoutToken = await api.app.inject(requestOf(call));
    const statuses = await Promise.all(
      ROLES.map(
        async (role) => (await api.app.inject(requestOf(call, AUTHORIZATIONS[role]))).statusCode,
      ),
    );

    expect(withoutToken.statusCode).toBe(401);
    expect(withoutToken.headers['www-authenticate']).toMatch(/^Bearer/);
    expect(withoutToken.json()).toMatchObject({ code: 'UNAUTHENTICATED', hint: expect.anything() });
    const allowed = ROLES.slice(ROLES.indexOf(least as Role));
    expect(ROLES.filter((_role, index) => ![401, 403].includes(statuses[index] ?? 0))).toEqual(
      allowed,
    );
  },
);

test.each(OPEN_PATHS)('%s is open', async (path) => {
  await using api = await openApi(NO_STORE);
  expect((await api.app.inject(path)).statusCode).toBeLessThan(400);
});

test('a route that does not say who may call it stops the API from starting', async () => {
  const app: FastifyInstance = Fastify();
  await app.register(authentication, { tokens: TOKENS });
  app.get('/forgotten', async () => await Promise.resolve('anybody'));

  await expect(app.ready()).rejects.toThrow('GET /forgotten does not say who may call it');
});

test.each([
  ['an unknown token', 'Bearer nobody-knows-this'],
  ['another scheme', `Basic ${Buffer.from(`x:${SECRETS.admin}`).toString('base64')}`],
  ['an empty token', 'Bearer '],
  ['the hash of a token', `Bearer ${TOKENS[2]?.sha256 ?? ''}`],
])('%s is refused', async (_what, authorization) => {
  await using api = await openApi(NO_STORE);
  const response = await api.app.inject({ url: '/v1/hosts', headers: { authorization } });
  expect(response.statusCode).toBe(401);
});

test('an unknown path says nothing to a stranger, and 404 to others', async () => {
  await using api = await openApi(NO_STORE);
  expect((await api.app.inject('/v1/secrets')).statusCode).toBe(401);
  const response = await api.app.inject({ url: '/v1/secrets', headers: asViewer });
  expect(response.json()).toMatchObject({ status: 404, code: 'NOT_FOUND' });
});

test('a flood of wrong tokens is answered by 429, while known tokens still work', async () => {
  await using api = await openApi(NO_STORE);
  const wrong = { url: '/v1/secrets', headers: { authorization: 'Bearer wrong' } };

  const statuses: number[] = [];
  for (let tries = 0; tries < 40; tries++) statuses.push((await api.app.inject(wrong)).statusCode);
  const refused = await api.app.inject(wrong);

  expect(new Set(statuses)).toEqual(new Set([401, 429]));
  expect(refused.json()).toMatchObject({ status: 429, code: 'RATE_LIMITED', retryable: true });
  expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
  expect((await api.app.inject({ ...wrong, headers: asViewer })).statusCode).toBe(404);
});

test('a token is never logged', async () => {
  await using api = await openApi(NO_STORE);
  for (const [call] of Object.entries(CALLS)) {
    await api.app.inject(requestOf(`${call}?token=${SECRETS.operator}`, asOperator));
    await api.app.inject(requestOf(call, { authorization: `Bearer ${SECRETS.admin}x` }));
    await api.app.inject(requestOf(call, { authorization: SECRETS.admin }));
  }

  const log = JSON.stringify(api.lines);
  expect(log).toContain('the-operator');
  for (const secret of Object.values(SECRETS)) expect(log).not.toContain(secret);
});

test('what is no HTTP is answered by a problem too', async () => {
  await using api = await openApi(NO_STORE);
  await api.app.listen({ host: '127.0.0.1', port: 0 });
  const socket = connect((api.app.server.address() as AddressInfo).port, '127.0.0.1');
  await once(socket, 'connect');

  socket.write('NONSENSE\r\n\r\n');
  const answer = await text(socket);

  expect(answer).toMatch(/^HTTP\/1\.1 400 /);
  expect(answer).toContain('application/problem+json');
  expect(answer).toContain('REQUEST_MALFORMED');
});

interface OpenapiDocument {
  paths?: Record<string, Record<string, { security?: unknown; description?: string }>>;
}
