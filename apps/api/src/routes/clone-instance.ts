/** What lives on when a clone has ended: its server is started and stopped, its time prolonged, its state made anew. */
import {
  Clone,
  CloneError,
  newClone,
  refuseUnsupported,
  specOfReset,
  Ttl,
} from '@pgcloned/contract';
import { admitInstanceWish, type CloneStore } from '@pgcloned/queue';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import { v7 as uuidv7 } from 'uuid';
import * as z from 'zod';
import { admitClone } from '../admit-clone.ts';
import { QUEUED_CLONE_EXAMPLE } from '../examples.ts';
import { refuseNoBody } from '../json-body.ts';
import {
  acceptedClone,
  BODY_REFUSED,
  EVERYWHERE,
  NOT_FOUND,
  type RouteCode,
  refusedBy,
  SPEC_REFUSALS,
} from '../responses.ts';
import {
  AcceptedHeaders,
  audit,
  IdempotencyHeaders,
  IdParams,
  idempotencyOf,
  sendAccepted,
} from './clones.ts';

const accepted = (id: string, description: string, ...codes: readonly RouteCode[]) => ({
  ...acceptedClone(id, description),
  ...EVERYWHERE,
  ...NOT_FOUND,
  ...refusedBy('CLONE_NOT_ENDED', 'INSTANCE_MISSING', 'REQUEST_INVALID', ...codes),
});

export const cloneInstanceRoutes: FastifyPluginAsyncZodOpenApi<{ store: CloneStore }> = async (
  app,
  { store },
) => {
  for (const [action, server, does] of [
    ['start', 'running', 'Start'],
    ['stop', 'stopped', 'Stop'],
  ] as const) {
    app.post(
      `/clones/:id/${action}`,
      {
        config: { role: 'operator' },
        schema: {
          operationId: `${action}Clone`,
          summary: `${does} the server of a clone`,
          description:
            `Of a clone that has ended and whose instance is stopped or running. The worker of its host does it, and ` +
            `\`waitingFor\` says so until then; afterwards \`instance\` tells what became of it, and \`instance.error\` ` +
            `why it could not be done. ` +
            (server === 'running'
              ? 'It is started as the host starts servers (`worker.start`). Its postmaster lives then; it may still be recovering.'
              : 'Sessions are ended by a fast shutdown, and by an immediate one if that takes longer than `worker.stallSeconds`.') +
            ' `Prefer: wait` of `GET` waits for it.',
          tags: ['clones'],
          params: IdParams,
          response: accepted(`${does}Accepted`, `It will be, or is, ${server}.`, 'TARGET_BUSY'),
        } satisfies FastifyZodOpenApiSchema,
      },
      async (request, reply) => {
        const clone = await store.changeInstance(request.params.id, { server });
        audit(request, `clone is to be ${server}`, clone.id);
        return await reply.code(202).send(clone);
      },
    );
  }

  app.post(
    '/clones/:id/extend',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'extendClone',
        summary: 'Give a clone another time to live',
        description:
          'Of a clone that has ended and has files: they will be removed in `ttl` seconds from now, be that later or sooner ' +
          'than before; null: never. `instance.expiresAt` says when; `spec.ttl` stays what was asked for at first.',
        tags: ['clones'],
        params: IdParams,
        body: z
          .strictObject({
            ttl: Ttl.nullable().meta({ description: 'Seconds from now; null: for ever' }),
          })
          .meta({ id: 'CloneExtension' }),
        response: {
          ...accepted('ExtensionAccepted', 'It has so much time from now on.'),
          ...BODY_REFUSED,
        },
      } satisfies FastifyZodOpenApiSchema,
      preValidation: (request, _reply, next) => {
        refuseNoBody(request, 'Send {"ttl": SECONDS} as application/json.');
        next();
      },
    },
    async (request, reply) => {
      const { ttl } = request.body;
      const askedAt = new Date().toISOString();
      const clone = await store.changeInstance(request.params.id, { ttl, askedAt });
      audit(request, 'time of the clone changed', clone.id);
      return await reply.code(202).send(clone);
    },
  );

  app.post(
    '/clones/:id/reset',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'resetClone',
        summary: 'Make a clone again in its place',
        description:
          "Makes a new clone of the source's state of then, with the request, labels, port and protection of this one and at " +
          'least the time that it has left; follow `Location`. The server of the old clone is stopped when the new one ' +
          'begins. Its files stay until the new ones are complete (`ifExists: replace`), so there must be room for both; if the ' +
          'new clone fails, they are as they were and their server runs again. Afterwards the instance of the old clone is ' +
          '`absent`, and whoever knows the clone by its id needs the new one. What was changed in a protected clone goes as ' +
          'well. Not for a standby with `replica.slot`. With `Idempotency-Key` it can be repeated safely, as a POST of a clone.',
        tags: ['clones'],
        params: IdParams,
        headers: IdempotencyHeaders,
        response: {
          202: {
            id: 'ResetAccepted',
            description: 'Accepted; follow `Location`, which leads to the new clone.',
            headers: AcceptedHeaders,
            content: { 'application/json': { schema: Clone, example: QUEUED_CLONE_EXAMPLE } },
          },
          ...EVERYWHERE,
          ...NOT_FOUND,
          ...refusedBy(
            'CLONE_NOT_ENDED',
            'INSTANCE_MISSING',
            'TARGET_BUSY',
            'REQUEST_INVALID',
            ...SPEC_REFUSALS,
            'IDEMPOTENCY_KEY_REUSED',
          ),
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async (request, reply) => {
      const { id } = request.params;
      const idempotency = idempotencyOf(request, request.headers['idempotency-key'], {
        resetOf: id,
      });
      const before = idempotency && (await store.madeBefore(idempotency));
      if (before !== undefined) return await sendAccepted(reply, before);
      const { clone } = await store.reset(
        id,
        async (old) => {
          admitInstanceWish(old, { server: 'stopped' });
          refuseSlot(old);
          const now = new Date();
          const spec = specOfReset(old, now.getTime());
          refuseUnsupported(spec);
          await admitClone(spec, store);
          return newClone({
            id: uuidv7().replaceAll('-', ''),
            spec,
            createdAt: now.toISOString(),
            resetOf: id,
          });
        },
        idempotency,
      );
      audit(request, `reset requested, as clone ${clone.id}`, id);
      return await sendAccepted(reply, clone);
    },
  );
};

/** @throws {CloneError} `NOT_SUPPORTED` */
function refuseSlot({ spec }: Clone): void {
  const { slot } = spec.replica;
  if (slot === null) return;
  throw new CloneError('NOT_SUPPORTED', 'a standby with a slot cannot be reset', {
    facts: { slot },
    hint: 'Delete it with data=true, which drops the slot, and ask for a new clone.',
  });
}
