/** Headers that tell browsers to trust nothing but the API itself. */
import helmet from '@fastify/helmet';
import fastifyPlugin from 'fastify-plugin';

export const headers = fastifyPlugin<{ readonly tls: boolean }>(async (app, { tls }) => {
  await app.register(helmet, {
    contentSecurityPolicy: {
      directives: {
        // Over plain HTTP a browser would ask for the scripts of /docs by HTTPS, and get none.
        upgradeInsecureRequests: tls ? [] : null,
      },
    },
    strictTransportSecurity: tls,
  });
  // Records change all the time, and some of what they say is not for a shared cache.
  app.addHook('onRequest', (_request, reply, next) => {
    void reply.header('cache-control', 'no-store');
    next();
  });
});
