/** The resource `preflights`: its place is taken, so that a caller is told that it is not built yet. */
import { CloneError } from '@pgcloned/contract';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import { BODY_REFUSED, EVERYWHERE } from '../responses.ts';

export const preflightRoutes: FastifyPluginAsyncZodOpenApi = async (app) => {
  app.post(
    '/preflights',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'createPreflight',
        summary: 'Check a clone without making it (not supported yet)',
        tags: ['clones'],
        response: { ...EVERYWHERE, ...BODY_REFUSED },
      } satisfies FastifyZodOpenApiSchema,
    },
    () => {
      throw new CloneError('NOT_SUPPORTED', 'preflights are not supported', {
        hint: 'POST the same body to /v1/clones?validateOnly=true, which checks all that the API can know.',
      });
    },
  );
};
