/** For load balancers and supervisors: whether this process lives, and whether it can do its work. */
import type { CloneStore } from '@pgcloned/queue';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import * as z from 'zod';
import { UNAVAILABLE } from '../responses.ts';

const Status = z.object({ status: z.literal('ok') });

export const healthRoutes: FastifyPluginAsyncZodOpenApi<{ store: CloneStore }> = async (
  app,
  { store },
) => {
  app.get(
    '/healthz',
    {
      config: { role: 'open' },
      schema: {
        operationId: 'getHealth',
        summary: 'Is the process alive?',
        description: 'Answers as long as the process can answer at all.',
        tags: ['health'],
        response: {
          200: {
            description: 'It is.',
            content: { 'application/json': { schema: Status } },
          },
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async () => await Promise.resolve({ status: 'ok' as const }),
  );

  app.get(
    '/readyz',
    {
      config: { role: 'open' },
      schema: {
        operationId: 'getReadiness',
        summary: 'Can requests be served?',
        description: 'Asks Redis.',
        tags: ['health'],
        response: {
          200: {
            description: 'They can.',
            content: { 'application/json': { schema: Status } },
          },
          ...UNAVAILABLE,
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async () => {
      await store.ping();
      return { status: 'ok' as const };
    },
  );
};
