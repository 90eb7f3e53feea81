/** What is said about a clone while it runs: the stream of its events, and its log. */
import { LogLine } from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import * as z from 'zod';
import { LOG_LINE_EXAMPLE, RUNNING_CLONE_EXAMPLE } from '../examples.ts';
import { orAborted } from '../plugins/streams.ts';
import { EVERYWHERE, NOT_ACCEPTABLE, NOT_FOUND } from '../responses.ts';
import { found, IdParams } from './clones.ts';

export const cloneEventRoutes: FastifyPluginAsyncZodOpenApi<{ store: CloneStore }> = async (
  app,
  { store },
) => {
  app.route({
    method: 'GET',
    url: '/clones/:id/events',
    config: { role: 'viewer' },
    exposeHeadRoute: false,
    sse: 'only',
    schema: {
      operationId: 'watchClone',
      summary: 'Follow a clone as server-sent events',
      description:
        'Three kinds of events: `clone` carries the whole record and always comes first, `log` carries one line of ' +
        'its log, `end` carries the record of a clone that has ended and is the last. Whoever is cut off asks again ' +
        'with the id of the last event as `Last-Event-ID`, and misses no log line that is still kept.',
      tags: ['clones'],
      params: IdParams,
      headers: z.object({
        'last-event-id': z
          .string()
          .max(64)
          .optional()
          .meta({ description: 'The last event that was received; `log` events go on after it' }),
      }),
      response: {
        200: {
          description: 'Events until the clone has ended.',
          content: {
            'text/event-stream': {
              schema: z.string(),
              example: `id: 1763629200940-0\nevent: clone\ndata: ${JSON.stringify({ id: RUNNING_CLONE_EXAMPLE.id, state: 'running' })}\n\n`,
            },
          },
        },
        ...EVERYWHERE,
        ...NOT_FOUND,
        ...NOT_ACCEPTABLE,
      },
    } satisfies FastifyZodOpenApiSchema,
    handler: async (request, reply) => {
      const { id } = request.params;
      found(await store.get(id), id);
      using answer = app.beginLongAnswer(reply);
      const { signal } = answer;
      // A kept-alive connection would hold up the end of the server for seconds.
      void reply.header('connection', 'close');
      const lastEventId = request.headers['last-event-id'] ?? null;
      for await (const event of store.watch(id, { lastEventId, signal })) {
        if (signal.aborted) break;
        await orAborted(reply.sse.send(event), signal);
      }
    },
  });

  app.get(
    '/clones/:id/logs',
    {
      config: { role: 'viewer' },
      schema: {
        operationId: 'listLogLines',
        summary: 'Read the log of a clone',
        description: 'The lines that are still kept, oldest first.',
        tags: ['clones'],
        params: IdParams,
        response: {
          200: {
            description: 'The log.',
            content: {
              'application/json': {
                schema: z
                  .object({ lines: z.array(LogLine).meta({ description: 'Oldest first' }) })
                  .meta({ id: 'LogLineList' }),
                example: { lines: [LOG_LINE_EXAMPLE] },
              },
            },
          },
          ...EVERYWHERE,
          ...NOT_FOUND,
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async ({ params }) => {
      found(await store.get(params.id), params.id);
      return { lines: [...(await store.logs(params.id))] };
    },
  );
};
