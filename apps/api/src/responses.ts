/**
 * What several routes answer with. When they refuse: one object per status, shared by all of them.
 *
 * fastify-zod-openapi 5.7 knows a shared response by its `id` and writes it as a component; one without comes out empty
 * wherever it is used again, and an id may stand for one object only.
 */
import { CATALOGUE, Clone, type ErrorCode, Problem } from '@pgcloned/contract';
import { ENDED_CLONE_EXAMPLE } from './examples.ts';

const refusal = (
  id: string,
  description: string,
  code: ErrorCode,
  more: Partial<Problem> & { readonly detail: string },
) => {
  const { title, httpStatus, retryable } = CATALOGUE[code];
  const example: Problem = {
    type: `urn:problem-type:pgcloned:${code}`,
    title,
    status: httpStatus,
    code,
    retryable,
    ...more,
  };
  return {
    id,
    description,
    content: { 'application/problem+json': { schema: Problem, example } },
  };
};

const REFUSALS = {
  400: refusal('Malformed', 'Body, query or header cannot be read.', 'REQUEST_MALFORMED', {
    detail: 'Body is not valid JSON',
  }),
  401: refusal('Unauthenticated', 'The token is missing or unknown.', 'UNAUTHENTICATED', {
    detail: 'token is missing or unknown',
    hint: 'Send `Authorization: Bearer TOKEN` (`pgcloned` sends PGCLONED_TOKEN); `pgcloned token create` makes a token.',
  }),
  403: refusal('Forbidden', 'The role of the token does not allow this.', 'FORBIDDEN', {
    detail: 'role operator is needed',
    facts: { role: 'viewer', needed: 'operator' },
  }),
  404: refusal('NotFound', 'There is no such thing.', 'NOT_FOUND', {
    detail: 'there is no clone 0193465f0d6d7a7e8f4d3a1c5b6e7f80',
  }),
  406: refusal('NotAcceptable', 'The response type is not available.', 'NOT_ACCEPTABLE', {
    detail: 'this resource is an event stream',
  }),
  409: refusal('Conflict', 'Something stands against it, which the code names.', 'TARGET_BUSY', {
    detail: 'another clone works on this target',
    holder: '0193465f0d6d7a7e8f4d3a1c5b6e7f80',
  }),
  413: refusal('TooLarge', 'The body is too large.', 'REQUEST_TOO_LARGE', {
    detail: 'Request body is too large',
  }),
  415: refusal(
    'MediaTypeUnsupported',
    'The body is not application/json.',
    'MEDIA_TYPE_UNSUPPORTED',
    { detail: 'Unsupported Media Type' },
  ),
  422: refusal(
    'Invalid',
    'The request can be read but breaks a rule; `errors` points to each place.',
    'REQUEST_INVALID',
    {
      detail: 'the body breaks a rule',
      errors: [{ pointer: '/target/dataDirectory', message: 'must be an absolute path' }],
    },
  ),
  429: refusal(
    'RateLimited',
    'Too many requests without a known token, open streams, or clones that wait for one host.',
    'RATE_LIMITED',
    { detail: 'too many requests without a known token' },
  ),
  500: refusal('Bug', 'This is a bug; the log says more under the request id.', 'INTERNAL', {
    detail: 'unexpected error',
  }),
  503: refusal(
    'Unavailable',
    'Redis, or the worker of a host that was asked for a preflight, does not answer. Try again later.',
    'QUEUE_UNAVAILABLE',
    {
      detail: 'Redis does not answer',
    },
  ),
};

/** What every route that asks for a token can answer with. */
export const EVERYWHERE = {
  400: REFUSALS[400],
  401: REFUSALS[401],
  403: REFUSALS[403],
  429: REFUSALS[429],
  500: REFUSALS[500],
  503: REFUSALS[503],
};
export const NOT_FOUND = { 404: REFUSALS[404] };
export const NOT_ACCEPTABLE = { 406: REFUSALS[406] };
export const CONFLICT = { 409: REFUSALS[409] };
export const INVALID = { 422: REFUSALS[422] };
/** What a route that reads a body can answer with. */
export const BODY_REFUSED = { 413: REFUSALS[413], 415: REFUSALS[415], 422: REFUSALS[422] };
export const UNAVAILABLE = { 503: REFUSALS[503] };

/** The clone of which something was asked that its worker has to do. */
export const acceptedClone = (id: string, description: string, example = ENDED_CLONE_EXAMPLE) => ({
  202: {
    id,
    description,
    content: { 'application/json': { schema: Clone, example } },
  },
});
