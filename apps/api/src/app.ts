/**
 * Builds the API: plugins in the order in which they must act, then the routes.
 *
 * The API is stateless: all it knows is in the store. It neither listens, nor reads configuration, nor handles
 * signals; `startApi` and the command line do. The order of registration matters: problems before authentication, so
 * that a refusal is a problem; the document before the routes, so that it hears of them.
 */
import type { Token } from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';
import Fastify, { type FastifyBaseLogger, type FastifyInstance, LogController } from 'fastify';
import { createSerializerCompiler, validatorCompiler } from 'fastify-zod-openapi';
import { v7 as uuidv7 } from 'uuid';
import * as z from 'zod';
import { refuseUselessBody, takeJson } from './json-body.ts';
import { authentication } from './plugins/authentication.ts';
import { document } from './plugins/document.ts';
import { headers } from './plugins/headers.ts';
import { problems, sendMalformed, sendProblem } from './plugins/problems.ts';
import { requestLog } from './plugins/request-log.ts';
import { streams } from './plugins/streams.ts';
import { cloneChangeRoutes } from './routes/clone-change.ts';
import { cloneEventRoutes } from './routes/clone-events.ts';
import { cloneInstanceRoutes } from './routes/clone-instance.ts';
import { cloneRoutes } from './routes/clones.ts';
import { healthRoutes } from './routes/health.ts';
import { hostRoutes } from './routes/hosts.ts';
import { preflightRoutes } from './routes/preflights.ts';

/** A clone with hundreds of mapped tablespaces and settings stays far below. */
const BODY_LIMIT_BYTES = 256 * 1024;

/** Whoever takes longer to send a request than this holds a socket for nothing. */
const REQUEST_TIMEOUT_MS = 30_000;

export interface ApiOptions {
  /** Stays open when the API is closed: it belongs to the caller. */
  readonly store: CloneStore;
  /** Without any, every request but the open ones is refused. */
  readonly tokens: readonly Token[];
  readonly logger: FastifyBaseLogger;
  readonly tls?: TlsMaterial | null;
}

/** Contents of PEM files. With `clientCa` only clients that hold a certificate of it are let in. */
export interface TlsMaterial {
  readonly cert: Buffer;
  readonly key: Buffer;
  readonly clientCa: Buffer | null;
}

export async function buildApi({
  store,
  tokens,
  logger,
  tls = null,
}: ApiOptions): Promise<FastifyInstance> {
  const app: FastifyInstance = Fastify({
    loggerInstance: logger,
    logController: new LogController({ disableRequestLogging: true }),
    // Ids of callers are not taken over: one could make lines of the log look like another's.
    genReqId: () => uuidv7(),
    bodyLimit: BODY_LIMIT_BYTES,
    requestTimeout: REQUEST_TIMEOUT_MS,
    forceCloseConnections: 'idle',
    // What still arrives on an open connection while we close is answered as usual.
    return503OnClosing: false,
    frameworkErrors: sendProblem,
    clientErrorHandler: sendMalformed,
    ...(tls !== null && {
      https: {
        cert: tls.cert,
        key: tls.key,
        ...(tls.clientCa !== null && {
          ca: tls.clientCa,
          requestCert: true,
          rejectUnauthorized: true,
        }),
      },
    }),
  });
  // Any other type is 415, also plain text, which Fastify would take.
  app.removeAllContentTypeParsers();
  takeJson(app, 'application/json');
  app.addHook('preValidation', async (request) => {
    refuseUselessBody(request);
  });
  // A route that takes no parameters refuses them like any other that it does not know.
  app.addHook('onRoute', ({ url, schema }) => {
    if (url.startsWith('/v1/') && schema !== undefined) schema.querystring ??= z.strictObject({});
  });
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(createSerializerCompiler({ stringify: JSON.stringify }));
  await app.register(requestLog);
  await app.register(problems);
  await app.register(headers, { tls: tls !== null });
  await app.register(authentication, { tokens });
  await app.register(document);
  await app.register(streams);
  await app.register(healthRoutes, { store });
  await app.register(cloneRoutes, { prefix: '/v1', store });
  await app.register(cloneChangeRoutes, { prefix: '/v1', store });
  await app.register(cloneInstanceRoutes, { prefix: '/v1', store });
  await app.register(cloneEventRoutes, { prefix: '/v1', store });
  await app.register(preflightRoutes, { prefix: '/v1', store });
  await app.register(hostRoutes, { prefix: '/v1', store });
  await app.ready();
  return app;
}
