/**
 * One line in the log for each answered request, and the id that leads to it.
 *
 * The id goes to the caller as `X-Request-Id`. Neither headers nor query are logged: a token could be in them.
 */
import type { FastifyReply, FastifyRequest } from 'fastify';
import fastifyPlugin from 'fastify-plugin';

export const requestLog = fastifyPlugin((app, _options, done) => {
  app.addHook('onRequest', (request, reply, next) => {
    void reply.header('x-request-id', request.id);
    // Fastify's own hook for this is not called for event streams.
    reply.raw.once('close', () => {
      logAnswer(request, reply);
    });
    next();
  });
  done();
});

function logAnswer(request: FastifyRequest, reply: FastifyReply): void {
  // Probes come every few seconds and say nothing as long as they are answered.
  const level =
    request.routeOptions.config.role === 'open' && reply.statusCode < 400 ? 'debug' : 'info';
  request.log[level](
    {
      method: request.method,
      path: pathOf(request.url),
      status: reply.statusCode,
      durationMs: Math.round(reply.elapsedTime),
      address: request.ip,
      token: request.caller?.name,
    },
    reply.raw.writableFinished ? 'request answered' : 'request left by its client',
  );
}

/** The path of a URL as it was sent, without its query. */
export function pathOf(url: string): string {
  return url.split('?', 1)[0] ?? '';
}
