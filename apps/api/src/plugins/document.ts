/** The OpenAPI document, made from the schemas of the routes, at /openapi.json and as a page at /docs. */
import { isDeepStrictEqual } from 'node:util';
import swagger, { type SwaggerTransform, type SwaggerTransformObject } from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import { VERSION } from '@pgcloned/contract';
import fastifyPlugin from 'fastify-plugin';
import { fastifyZodOpenApiPlugin, fastifyZodOpenApiTransformers } from 'fastify-zod-openapi';
import { SPEC_EXAMPLES } from '../examples.ts';

const DESCRIPTION = `Physical clones of PostgreSQL clusters.

**Access.** Every call but \`/healthz\`, \`/readyz\`, \`/openapi.json\` and \`/docs\` needs \`Authorization: Bearer TOKEN\`.
A token has a role: \`viewer\` reads, \`operator\` also creates, changes, cancels and forgets clones,
\`admin\` may do everything.

**Conventions.** Times are RFC 3339 in UTC, sizes are bytes, log sequence numbers are text, ids are 32 hexadecimal digits.
Every answer carries \`X-Request-Id\`, which leads to its lines in the log.

**Errors** are problems of RFC 9457 (\`application/problem+json\`). Decide by \`code\`; \`detail\` and \`hint\` are for people.
What cannot be read is answered by 400, what breaks a rule by 422, and \`retryable\` says whether the same request may
succeed later. A value that is known but not built yet is \`NOT_SUPPORTED\`. Each
operation lists its codes, each with an example; a path that does not take a method answers 405 \`METHOD_NOT_ALLOWED\`. Fields and parameters that are not known are refused, and so
is a body that would not be looked at.

**Repeating a request.** \`POST /v1/clones\` and \`…/reset\` make a clone: with an \`Idempotency-Key\` a repeated one answers
the clone that the first has made, for a day. All other requests ask for a state, so the same one again changes nothing;
\`…/extend\` counts from its last time, and the second \`DELETE\` of a record is 404.

**Following a clone.** \`POST /v1/clones\` answers 202 at once. Follow \`Location\` with \`Prefer: wait=30\`, or read the events,
until \`state\` is \`succeeded\`, \`failed\` or \`cancelled\`. Those are for ever; what becomes of its files and its server
afterwards is in \`instance\`. A start, stop, reset, change of its time or removal is answered by 202, too: it is done when
\`waitingFor\` is null and \`instance.state\` is not \`removing\`, and has failed if \`instance.error\` is not null.

**Limits.** Records of ended clones without files are kept for 90 days, 2000 of them at most; of each clone about the last 1000 log lines
and changes. 1000 clones may wait or run for one host, and 500 event streams be open at an API; one more is 429 \`RATE_LIMITED\`. A body has
256 KiB at most.`;

export const document = fastifyPlugin(async (app) => {
  await app.register(fastifyZodOpenApiPlugin, { documentOpts: { override: withoutNoise } });
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'pgcloned',
        version: VERSION,
        description: DESCRIPTION,
        license: { name: 'MIT', identifier: 'MIT' },
      },
      servers: [{ url: '/', description: 'The API that serves this document' }],
      tags: [
        { name: 'clones', description: 'Making clones and following them' },
        { name: 'hosts', description: 'Where clones can be made' },
        { name: 'health', description: 'For load balancers and supervisors' },
      ],
      components: {
        securitySchemes: {
          token: {
            type: 'http',
            scheme: 'bearer',
            description: '`pgcloned token create` makes a token.',
          },
        },
      },
      security: [{ token: [] }],
    },
    transform,
    transformObject,
  });
  app.get(
    '/openapi.json',
    { config: { role: 'open' }, schema: { hide: true } },
    async (_request, reply) => await reply.send(app.swagger()),
  );
  await app.register(async (docs) => {
    // The page knows nothing but the document; its routes cannot be told from outside who may call them.
    docs.addHook('onRoute', (route) => {
      route.config = { ...route.config, role: 'open' };
    });
    await docs.register(swaggerUi, { routePrefix: '/docs', uiConfig: { deepLinking: true } });
  });
});

/** Leaves out what says nothing to a reader, or would break a client when an answer gets one more field. */
function withoutNoise({
  jsonSchema,
  io,
}: {
  readonly jsonSchema: JsonSchema;
  readonly io: 'input' | 'output';
}): void {
  if (io === 'output' && jsonSchema.additionalProperties === false) {
    delete jsonSchema.additionalProperties;
  }
  if (jsonSchema.format === 'date-time') delete jsonSchema.pattern;
  if (isDeepStrictEqual(jsonSchema.propertyNames, { type: 'string' })) {
    delete jsonSchema.propertyNames;
  }
  if (jsonSchema.maximum === Number.MAX_SAFE_INTEGER) delete jsonSchema.maximum;
  if (jsonSchema.minimum === Number.MIN_SAFE_INTEGER) delete jsonSchema.minimum;
}

interface JsonSchema {
  additionalProperties?: unknown;
  format?: string | undefined;
  maximum?: number | undefined;
  minimum?: number | undefined;
  pattern?: string | undefined;
  propertyNames?: unknown;
}

/** Says with every operation who may call it, from the same place that refuses everybody else. */
const transform: SwaggerTransform = (options) => {
  const transformed = fastifyZodOpenApiTransformers.transform(options);
  const { schema } = transformed;
  const role = options.route.config?.role;
  if (schema === undefined || schema.hide === true || role === undefined) return transformed;
  return {
    ...transformed,
    schema:
      role === 'open'
        ? { ...schema, security: [] }
        : { ...schema, description: `${schema.description ?? ''}\n\nRole: \`${role}\`.`.trim() },
  };
};

/**
 * Mends what fastify-zod-openapi 5.7 and @fastify/swagger make of a response that is a component: from its second use on
 * the reference lands where a schema belongs. The examples of a body that is a component get lost as well.
 */
const transformObject: SwaggerTransformObject = (documentObject) => {
  const document = fastifyZodOpenApiTransformers.transformObject(documentObject);
  for (const path of Object.values((document as OpenapiDocument).paths ?? {})) {
    for (const { requestBody, responses = {} } of Object.values(path)) {
      const body = requestBody?.content['application/json'];
      if (body?.schema.$ref === '#/components/schemas/CloneSpec') body.examples = SPEC_EXAMPLES;
      for (const [status, response] of Object.entries(responses)) {
        const $ref = response.content?.['application/json']?.schema?.$ref;
        if ($ref?.startsWith('#/components/responses/') === true) responses[status] = { $ref };
      }
    }
  }
  return document;
};

interface OpenapiDocument {
  paths?: Record<string, Record<string, OpenapiOperation>>;
}
interface OpenapiOperation {
  requestBody?: { content: Record<string, { schema: { $ref?: string }; examples?: object }> };
  responses?: Record<string, OpenapiResponse>;
}
interface OpenapiResponse {
  $ref?: string;
  content?: Record<string, { schema?: { $ref?: string } }>;
}
