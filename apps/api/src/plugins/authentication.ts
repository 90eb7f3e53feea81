/**
 * Bearer tokens with roles, refused by default.
 *
 * Every route declares in its `config` who may call it; one that forgets stops the API from starting. Unknown paths ask
 * for a token too, so that a stranger learns nothing about them. Only hashes of tokens are known here; a token has 256
 * random bits, so it cannot be guessed. The limit on failures keeps strangers from flooding log and processor; it never
 * locks a known token out, which may share its address with a client that was set up wrongly.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import bearerAuth from '@fastify/bearer-auth';
import rateLimit from '@fastify/rate-limit';
import { CloneError, type Role, type Token } from '@pgcloned/contract';
import type { FastifyRequest, RouteOptions } from 'fastify';
import fastifyPlugin from 'fastify-plugin';

/** Failures from one address in one minute. A client that tries again every few seconds stays below. */
const FAILURES_PER_MINUTE_MAX = 30;

/** What a role may do, the next one may too. */
const ROLES_ASCENDING: readonly Role[] = ['viewer', 'operator', 'admin'];

export interface Caller {
  readonly name: string;
  readonly role: Role;
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The least role that may call the route; `open`: no token is asked for. */
    role?: Role | 'open';
  }
  interface FastifyRequest {
    /** Whose token was sent; null on open routes. */
    caller: Caller | null;
  }
}

export const authentication = fastifyPlugin<{ readonly tokens: readonly Token[] }>(
  async (app, { tokens }) => {
    const known = tokens.map(({ name, role, sha256 }) => ({
      caller: { name, role },
      hash: Buffer.from(sha256, 'hex'),
    }));
    app.decorateRequest('caller', null);
    await app.register(rateLimit, { global: false });
    const countFailure = app.createRateLimit({ max: FAILURES_PER_MINUTE_MAX, timeWindow: 60_000 });
    await app.register(bearerAuth, {
      addHook: false,
      keys: new Set<string>(),
      specCompliance: 'rfc6749',
      verifyErrorLogLevel: 'debug',
      auth: (token: string, request: FastifyRequest) => {
        const offered = createHash('sha256').update(token).digest();
        // All are compared, so that the time says nothing about which one it was.
        const [match] = known.filter(({ hash }) => timingSafeEqual(hash, offered));
        request.caller = match?.caller ?? null;
        return match !== undefined;
      },
    });

    const routes: RouteOptions[] = [];
    app.addHook('onRoute', (route) => {
      routes.push(route);
    });
    app.addHook('onReady', (next) => {
      const forgotten = routes.find(({ config }) => config?.role === undefined);
      next(
        forgotten &&
          new Error(`${String(forgotten.method)} ${forgotten.url} does not say who may call it`),
      );
    });

    app.addHook('onRequest', async (request, reply) => {
      const { role } = request.routeOptions.config;
      if (role === 'open') return;
      const { promise, resolve } = Promise.withResolvers<Error | undefined>();
      app.verifyBearerAuth?.(request, reply, resolve);
      const refusal = await promise;
      if (refusal !== undefined || request.caller === null) {
        const failures = await countFailure(request);
        if (!failures.isAllowed && failures.isExceeded) {
          void reply.header('retry-after', failures.ttlInSeconds);
          throw new CloneError('RATE_LIMITED', 'too many requests without a known token', {
            hint: 'Wait as long as Retry-After says, and send a known token.',
          });
        }
        void reply.header('www-authenticate', 'Bearer realm="pgcloned"');
        throw new CloneError('UNAUTHENTICATED', 'token is missing or unknown', {
          hint: 'Send `Authorization: Bearer TOKEN` (`pgcloned` sends PGCLONED_TOKEN); `pgcloned token create` makes a token.',
        });
      }
      if (role !== undefined) demandRole(request, role);
    });
  },
);

/**
 * For what depends on more than the route.
 *
 * @throws {CloneError} `FORBIDDEN`.
 */
export function demandRole({ caller }: FastifyRequest, role: Role): Caller {
  if (caller !== null && ROLES_ASCENDING.indexOf(caller.role) >= ROLES_ASCENDING.indexOf(role)) {
    return caller;
  }
  throw new CloneError('FORBIDDEN', `role ${role} is needed`, {
    facts: { role: caller?.role ?? null, needed: role },
    hint: `Use a token whose role is ${role}; tokens and roles are in api.tokens.`,
  });
}
