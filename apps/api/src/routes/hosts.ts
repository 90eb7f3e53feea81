/** The resource `hosts`: what the workers say about the machines they run on. */
import { CloneError, Host } from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import * as z from 'zod';
import { HOST_EXAMPLE } from '../examples.ts';
import { EVERYWHERE, NOT_FOUND } from '../responses.ts';

export const hostRoutes: FastifyPluginAsyncZodOpenApi<{ store: CloneStore }> = async (
  app,
  { store },
) => {
  app.get(
    '/hosts',
    {
      config: { role: 'viewer' },
      schema: {
        operationId: 'listHosts',
        summary: 'List the hosts that can receive clones',
        description: 'All hosts whose worker has ever registered, also those that are offline.',
        tags: ['hosts'],
        response: {
          200: {
            description: 'The hosts by name.',
            content: {
              'application/json': {
                schema: z
                  .object({ hosts: z.array(Host).meta({ description: 'By name' }) })
                  .meta({ id: 'HostList' }),
                example: { hosts: [HOST_EXAMPLE] },
              },
            },
          },
          ...EVERYWHERE,
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async () => ({ hosts: [...(await store.hosts())] }),
  );

  app.get(
    '/hosts/:name',
    {
      config: { role: 'viewer' },
      schema: {
        operationId: 'getHost',
        summary: 'Look at one host',
        tags: ['hosts'],
        params: z.object({
          name: z.string().min(1).max(63).meta({ description: 'Name of the host' }),
        }),
        response: {
          200: {
            description: 'What its worker said last.',
            content: { 'application/json': { schema: Host, example: HOST_EXAMPLE } },
          },
          ...EVERYWHERE,
          ...NOT_FOUND,
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async ({ params }) => {
      const host = await store.host(params.name);
      if (host === undefined) throw new CloneError('NOT_FOUND', `there is no host ${params.name}`);
      return host;
    },
  );
};
