/** The resource `clones`: make, list, read, cancel, forget; what lives on after its end is in `clone-instance.ts`. */
import { createHash } from 'node:crypto';
import {
  Clone,
  CloneError,
  CloneId,
  CloneSpec,
  hasEnded,
  newClone,
  refuseUnsupported,
  STATES,
} from '@pgcloned/contract';
import { type CloneStore, notFound, targetBusy, versionOf } from '@pgcloned/queue';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import { v7 as uuidv7 } from 'uuid';
import * as z from 'zod';
import { admitClone, refuseSpelledOutSource } from '../admit-clone.ts';
import { entityTag, isKnown, waitSecondsOf } from '../conditional.ts';
import { QUEUED_CLONE_EXAMPLE, RUNNING_CLONE_EXAMPLE } from '../examples.ts';
import { refuseNoBody } from '../json-body.ts';
import { demandRole } from '../plugins/authentication.ts';
import {
  acceptedClone,
  BODY_REFUSED,
  EVERYWHERE,
  NOT_FOUND,
  refusedBy,
  SPEC_REFUSALS,
} from '../responses.ts';

/** A clone that was just accepted is taken by an idle worker within milliseconds. */
const RETRY_AFTER_SECONDS = 1;

export const IdempotencyHeaders = z.object({
  'idempotency-key': z
    .string()
    .min(1)
    .max(255)
    .regex(/^[\x21-\x7e]+$/, 'must be printable ASCII without blanks')
    .optional()
    .meta({ description: 'Your own name for this request, such as a UUID' }),
});

export const AcceptedHeaders = z.object({
  Location: z.string().meta({ description: 'Where the new clone can be read' }),
  'Retry-After': z.int().nonnegative().meta({
    description: 'Seconds until a change can be expected',
  }),
});

const PAGE_SIZE_DEFAULT = 50;
const PAGE_SIZE_MAX = 200;

export const IdParams = z.object({ id: CloneId });

const flag = (description: string) =>
  z
    .stringbool()
    .default(false)
    .meta({ description, override: { type: 'boolean', default: false } });

export const cloneRoutes: FastifyPluginAsyncZodOpenApi<{ store: CloneStore }> = async (
  app,
  { store },
) => {
  app.post(
    '/clones',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'createClone',
        summary: 'Create a clone',
        description:
          'Accepts the clone and answers at once; the worker of the target host makes it. Everything but ' +
          '`source`, `target.host` and `target.dataDirectory` has a default. A host that is offline is ' +
          'accepted, and `waitingFor` says why the clone waits. With `Idempotency-Key` the same request can be ' +
          'repeated safely: the first clone made with it is answered again.\n\n' +
          '**A database per test run**, on XFS or btrfs:\n\n' +
          '1. Once: the example `template`, whose data the SQL files of `onReady` of its source mask. A label makes it ' +
          'found, and `protected` keeps it.\n' +
          '2. In each job: find it by `GET /v1/clones?label=template=orders&state=succeeded&pageSize=1`, and send the example ' +
          '`databasePerTestRun` with its id as `source.clone`, a directory of your own, and a `ttl` for jobs that are killed.\n' +
          '3. Read the clone with `Prefer: wait=30` until `state` is `succeeded`: `result.connectionString` leads to it through ' +
          'its socket, `instance.port` on `localhost`. It takes writes.\n' +
          '4. `DELETE /v1/clones/{id}?data=true` gives it back.\n' +
          '5. For newer data: `POST /v1/clones/{id}/reset` of the template. It has a new id then, and the same label.',
        tags: ['clones'],
        body: CloneSpec,
        querystring: z.strictObject({
          validateOnly: flag('Check only: answer 200 with the clone as it would be made'),
        }),
        headers: IdempotencyHeaders,
        response: {
          200: {
            id: 'CloneValid',
            description: 'With `validateOnly`: the request is valid; nothing was made.',
            content: { 'application/json': { schema: Clone, example: QUEUED_CLONE_EXAMPLE } },
          },
          202: {
            id: 'CloneAccepted',
            description: 'Accepted; follow `Location`.',
            headers: AcceptedHeaders,
            content: { 'application/json': { schema: Clone, example: QUEUED_CLONE_EXAMPLE } },
          },
          ...EVERYWHERE,
          ...BODY_REFUSED,
          ...refusedBy(
            'TARGET_BUSY',
            'REQUEST_INVALID',
            ...SPEC_REFUSALS,
            'IDEMPOTENCY_KEY_REUSED',
          ),
        },
      } satisfies FastifyZodOpenApiSchema,
      preValidation: (request, _reply, next) => {
        refuseNoBody(request, 'Send the clone that you want as application/json.');
        refuseSpelledOutSource(request.body);
        next();
      },
    },
    async (request, reply) => {
      const { body: spec, query, headers } = request;
      refuseUnsupported(spec);
      const clone = newClone({
        id: uuidv7().replaceAll('-', ''),
        spec,
        createdAt: new Date().toISOString(),
      });
      if (query.validateOnly) {
        await admitClone(spec, store);
        await refuseBusyTarget(spec, store);
        return await reply.code(200).send(clone);
      }
      const idempotency = idempotencyOf(request, headers['idempotency-key'], spec);
      // What was accepted stays accepted, also where the same request would be refused by now.
      const before = idempotency && (await store.madeBefore(idempotency));
      if (before === undefined) await admitClone(spec, store);
      const made = await store.create(clone, idempotency);
      if (made.created) audit(request, 'clone created', made.clone.id);
      return await sendAccepted(reply, made.clone);
    },
  );

  app.get(
    '/clones',
    {
      config: { role: 'viewer' },
      schema: {
        operationId: 'listClones',
        summary: 'List clones, newest first',
        tags: ['clones'],
        querystring: z.strictObject({
          state: z.enum(STATES).optional().meta({ description: 'Only clones in this state' }),
          host: z.string().max(63).optional().meta({ description: 'Only clones on this host' }),
          label: z.string().max(320).optional().meta({
            description: 'Only clones with this label: `NAME=VALUE`, or `NAME` for any value',
          }),
          pageSize: z.coerce
            .number<string | undefined>()
            .int()
            .min(1)
            .max(PAGE_SIZE_MAX)
            .default(PAGE_SIZE_DEFAULT)
            .meta({ description: 'How many at most' }),
          pageToken: z
            .string()
            .regex(/^[\w-]{22}$/, 'must be nextPageToken of the page before, as it was')
            .optional()
            .meta({ description: '`nextPageToken` of the page before' }),
        }),
        response: {
          200: {
            description: 'One page.',
            content: {
              'application/json': {
                schema: z
                  .object({
                    clones: z.array(Clone).meta({ description: 'Newest first' }),
                    nextPageToken: z.string().nullable().meta({
                      description: 'Leads to the next page; null on the last one',
                    }),
                  })
                  .meta({ id: 'CloneList' }),
                example: { clones: [RUNNING_CLONE_EXAMPLE], nextPageToken: null },
              },
            },
          },
          ...EVERYWHERE,
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async ({ query }) => {
      const { clones, nextPageToken } = await store.list(query);
      return { clones: [...clones], nextPageToken };
    },
  );

  app.get(
    '/clones/:id',
    {
      config: { role: 'viewer' },
      schema: {
        operationId: 'getClone',
        summary: 'Look at one clone',
        description:
          'With `Prefer: wait=N` the answer waits up to N seconds (at most 50) for the next change: for one since ' +
          '`If-None-Match`, where that is given. A clone that has ended is answered at once, unless something that was ' +
          'asked for is still to be done with it.',
        tags: ['clones'],
        params: IdParams,
        headers: z.object({
          'if-none-match': z.string().optional().meta({ description: 'The `ETag` you have' }),
          prefer: z.string().optional().meta({ description: '`wait=30` waits for a change' }),
        }),
        response: {
          200: {
            id: 'CloneFound',
            description: 'The clone as it is.',
            headers: z.object({
              ETag: z.string().meta({ description: 'Changes with every change of the clone' }),
              'Preference-Applied': z.string().optional().meta({
                description: 'How long the answer would have waited',
              }),
            }),
            content: { 'application/json': { schema: Clone, example: RUNNING_CLONE_EXAMPLE } },
          },
          304: { id: 'CloneUnchanged', description: 'It is as it was at `If-None-Match`.' },
          ...EVERYWHERE,
          ...NOT_FOUND,
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async (request, reply) => {
      const { params, headers } = request;
      let clone = found(await store.get(params.id), params.id);
      let tag = entityTag(clone);
      const waitSeconds = waitSecondsOf(headers.prefer);
      if (waitSeconds > 0) {
        void reply.header('preference-applied', `wait=${String(waitSeconds)}`);
        const changed =
          headers['if-none-match'] !== undefined && !isKnown(tag, headers['if-none-match']);
        if (!changed && (!hasEnded(clone.state) || isChanging(clone))) {
          using answer = app.beginLongAnswer(reply);
          clone = await store.waitForChange(clone.id, {
            version: versionOf(clone),
            timeoutMs: waitSeconds * 1000,
            signal: answer.signal,
          });
          tag = entityTag(clone);
        }
      }
      void reply.header('etag', tag);
      if (isKnown(tag, headers['if-none-match'])) return await reply.code(304).send();
      return await reply.code(200).send(clone);
    },
  );

  app.post(
    '/clones/:id/cancel',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'cancelClone',
        summary: 'Cancel a clone',
        description:
          'A queued clone is cancelled at once. A running one becomes `cancelling`, and `cancelled` once everything ' +
          'is tidied up on both sides. Once its files are published it is too late.',
        tags: ['clones'],
        params: IdParams,
        response: {
          ...acceptedClone(
            'CancelAccepted',
            'It will be, or is, cancelled; asking again changes nothing.',
            RUNNING_CLONE_EXAMPLE,
          ),
          ...EVERYWHERE,
          ...NOT_FOUND,
          ...refusedBy('CLONE_ENDED', 'TOO_LATE_TO_CANCEL', 'REQUEST_INVALID'),
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async (request, reply) => {
      const { id } = request.params;
      const clone = await store.cancel(id);
      audit(request, 'cancel requested', id);
      return await reply.code(202).send(clone);
    },
  );

  app.delete(
    '/clones/:id',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'deleteClone',
        summary: 'Forget a clone that has ended, or remove its files',
        description:
          'Removes the record; what was cloned stays where it is. With `data=true` the other way round: the worker stops ' +
          'the server and removes the data directory with all that belongs to it, as far as it carries the marker of this ' +
          'clone, and the slot of the standby (`replica.slot`). `instance.state` becomes `removing` and then `removed`; ' +
          'what could not be removed is in `instance.error` and `leftovers`, and the record stays to tell. A clone that is ' +
          'protected is refused, and so is forgetting one whose files will be removed; `force` forgets these, too, and removes nothing, ' +
          'but no protected one as long as its host is online.',
        tags: ['clones'],
        params: IdParams,
        querystring: z.strictObject({
          data: flag('Stop the server and remove the files; the record stays'),
          force: flag('Forget a clone whose host is gone, in whatever state (role `admin`)'),
        }),
        response: {
          ...acceptedClone(
            'RemovalAccepted',
            'With `data`: its files will be, or are, removed; asking again changes nothing.',
          ),
          204: { id: 'Forgotten', description: 'It is forgotten.' },
          ...EVERYWHERE,
          ...NOT_FOUND,
          ...refusedBy(
            'CLONE_NOT_ENDED',
            'CLONE_PROTECTED',
            'CLONE_EXPIRES',
            'TARGET_BUSY',
            'REQUEST_INVALID',
          ),
        },
      } satisfies FastifyZodOpenApiSchema,
    },
    async (request, reply) => {
      const { params, query } = request;
      if (query.force) demandRole(request, 'admin');
      if (query.data) {
        if (query.force) {
          throw new CloneError('REQUEST_INVALID', 'data and force cannot stand together', {
            hint: 'force is for a clone whose host is gone, and with it what could remove its files.',
          });
        }
        const clone = await store.changeInstance(params.id, { remove: true });
        audit(request, 'removal of the files requested', params.id);
        return await reply.code(202).send(clone);
      }
      await store.forget(params.id, { force: query.force });
      audit(request, 'clone forgotten', params.id);
      return await reply.code(204).send();
    },
  );
};

/** Whether something was asked for that its worker has still to do. */
function isChanging({ waitingFor, instance }: Clone): boolean {
  return waitingFor !== null || instance.state === 'removing';
}

/** @throws {CloneError} `NOT_FOUND` */
export function found(clone: Clone | undefined, id: string): Clone {
  if (clone !== undefined) return clone;
  throw notFound(id);
}

/** What `create` refuses too, for a request that only wants to know. */
async function refuseBusyTarget({ target }: CloneSpec, store: CloneStore): Promise<void> {
  const holder = await store.holderOf(target);
  if (holder !== undefined) throw targetBusy(holder);
}

/** @param asked What makes it the same request. */
export function idempotencyOf({ caller }: FastifyRequest, key: string | undefined, asked: object) {
  if (key === undefined) return undefined;
  // Callers choose their keys on their own, so one token's must not meet another's.
  return { key: `${caller?.name ?? ''}/${key}`, fingerprint: fingerprintOf(asked) };
}

export async function sendAccepted(reply: FastifyReply, clone: Clone): Promise<FastifyReply> {
  return await reply
    .code(202)
    .header('location', `/v1/clones/${clone.id}`)
    .header('retry-after', RETRY_AFTER_SECONDS)
    .send(clone);
}

/** The same for every way to write the same request. */
function fingerprintOf(asked: object): string {
  const canonical = JSON.stringify(asked, (_key, value: unknown) =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
  return createHash('sha256').update(canonical).digest('hex');
}

/** Who did what to which clone, for whoever asks later. */
export function audit(request: FastifyRequest, message: string, cloneId: string): void {
  request.log.info({ audit: true, token: request.caller?.name, cloneId }, message);
}
