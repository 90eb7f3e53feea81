/** Changing a clone while it runs. It has a file of its own because it alone takes another type of body. */
import { Clone, CloneChange } from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import { RUNNING_CLONE_EXAMPLE } from '../examples.ts';
import { refuseNoBody, takeJson } from '../json-body.ts';
import { BODY_REFUSED, EVERYWHERE, NOT_FOUND, refusedBy } from '../responses.ts';
import { audit, found, IdParams } from './clones.ts';

/** RFC 7396: what is left out stays as it is. */
const MERGE_PATCH = 'application/merge-patch+json';

export const cloneChangeRoutes: FastifyPluginAsyncZodOpenApi<{ store: CloneStore }> = async (
  app,
  { store },
) => {
  takeJson(app, MERGE_PATCH);
  app.patch(
    '/clones/:id',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'changeClone',
        summary: 'Change rate, workers and protection of a clone',
        description:
          'A JSON Merge Patch (RFC 7396) of `transfer.maxRate`, `transfer.workers` and `protected`; what is left out stays as ' +
          'it is, and a rate or number that is null goes back to its default. A rate or a number of workers holds for whatever is still to be copied: at once while files are copied, for ' +
          'which `progress.workers` is the proof, and for every further attempt, also after a restart of the worker. ' +
          'A clone that has copied all its files takes a change without any effect; one that has ended takes none.',
        tags: ['clones'],
        params: IdParams,
        consumes: ['application/json', MERGE_PATCH],
        body: CloneChange,
        response: {
          200: {
            id: 'CloneChanged',
            description: 'The clone, with the transfer as it is wished for from now on.',
            content: { 'application/json': { schema: Clone, example: RUNNING_CLONE_EXAMPLE } },
          },
          ...EVERYWHERE,
          ...NOT_FOUND,
          ...BODY_REFUSED,
          ...refusedBy('CLONE_ENDED', 'INSTANCE_MISSING', 'REQUEST_INVALID', 'NOT_SUPPORTED'),
        },
      } satisfies FastifyZodOpenApiSchema,
      preValidation: (request, _reply, next) => {
        refuseNoBody(request, `Send what is to change as ${MERGE_PATCH}.`);
        next();
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      const { transfer, protected: isProtected } = request.body;
      let clone = found(await store.get(id), id);
      // What can be refused comes first, so that a request is done as a whole or not at all.
      if (transfer !== undefined) clone = await store.changeTransfer(id, transfer);
      if (isProtected !== undefined)
        clone = await store.changeInstance(id, { protected: isProtected });
      audit(request, 'clone changed', id);
      return await reply.code(200).send(clone);
    },
  );
};
