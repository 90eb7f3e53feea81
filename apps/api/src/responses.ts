/**
 * What several routes answer with. When they refuse: one object per status, shared by all of them.
 *
 * fastify-zod-openapi 5.7 knows a shared response by its `id` and writes it as a component; one without comes out empty
 * wherever it is used again, and an id may stand for one object only.
 */
import { CATALOGUE, Clone, type ErrorCode, Problem } from '@pgcloned/contract';
import { ENDED_CLONE_EXAMPLE, ID } from './examples.ts';

/** What the codes of single routes say, for their examples. */
const OCCASIONS = {
  TARGET_BUSY: { detail: 'another clone works on this target', holder: ID },
  TOO_LATE_TO_CANCEL: {
    detail: 'the clone is published already',
    hint: 'Wait until it has ended, and delete it then if it is not wanted.',
    facts: { dataDirectory: '/var/lib/postgresql/15/main' },
  },
  CLONE_ENDED: { detail: 'the clone has ended', facts: { state: 'succeeded' } },
  CLONE_NOT_ENDED: {
    detail: 'the clone has not ended',
    hint: 'Wait until it has ended, or cancel it first.',
    facts: { state: 'running' },
  },
  CLONE_PROTECTED: {
    detail: 'the clone is protected',
    hint: 'Take the protection back first: PATCH the clone with {"protected": false}, or `pgcloned clone change --no-protect ID`.',
  },
  CLONE_EXPIRES: {
    detail: 'the files of the clone will be removed at 2026-11-20T10:00:10.380Z',
    hint: 'Delete it with data=true to remove them now, or extend it with ttl null to keep them.',
    facts: { instanceState: 'running', expiresAt: '2026-11-20T10:00:10.380Z' },
  },
  INSTANCE_MISSING: {
    detail: 'the instance of the clone is removed',
    hint: 'Look at `instance` of the clone, and ask for a new clone if this one is gone.',
    facts: { instanceState: 'removed' },
  },
  REQUEST_INVALID: {
    detail: 'the body breaks a rule',
    hint: 'Mend each place that `errors` points to; `/docs` describes every field.',
    errors: [{ pointer: '/target/dataDirectory', message: 'must be an absolute path' }],
  },
  NOT_SUPPORTED: {
    detail: 'webhook: a receiver is not supported',
    hint: 'Leave webhook out and follow the events of the clone.',
    facts: { field: 'webhook', value: 'a receiver' },
  },
  SETTING_FORBIDDEN: {
    detail: 'setting archive_command may not be set by a request',
    hint: 'Leave it out, or let the operator of the host add archive_command to worker.allowedSettings.',
    facts: { setting: 'archive_command' },
  },
  HOST_UNKNOWN: {
    detail: 'no worker has registered for host replica-9',
    hint: 'Start `pgcloned worker` on that host, or take a name that `GET /v1/hosts` lists.',
    facts: { host: 'replica-9' },
  },
  SOURCE_UNKNOWN: {
    detail: 'host replica-1 has no source billing',
    hint: "Take one of orders, or add it under sources in the worker's configuration.",
    facts: { host: 'replica-1', source: 'billing' },
  },
  IDEMPOTENCY_KEY_REUSED: {
    detail: 'the key came with another request before',
    hint: 'Use a new key for every request that differs.',
    facts: { clone: ID },
  },
  QUEUE_UNAVAILABLE: { detail: 'redis does not answer' },
  HOST_UNAVAILABLE: {
    detail: 'the worker of host replica-1 has not answered in time',
    facts: { host: 'replica-1' },
  },
} satisfies Partial<Record<ErrorCode, Partial<Problem>>>;

export type RouteCode = keyof typeof OCCASIONS;

/** What may be wrong with a clone that is asked for, besides the form of the request. */
export const SPEC_REFUSALS = [
  'NOT_SUPPORTED',
  'SETTING_FORBIDDEN',
  'HOST_UNKNOWN',
  'SOURCE_UNKNOWN',
] as const;

function problem(code: ErrorCode, more: Partial<Problem>): Problem {
  const { title, httpStatus, retryable } = CATALOGUE[code];
  const type = `urn:problem-type:pgcloned:${code}`;
  return Problem.parse({ type, title, status: httpStatus, code, retryable, ...more });
}

const refusal = (
  id: string,
  description: string,
  code: ErrorCode,
  more: Partial<Problem> & { readonly detail: string },
) => ({
  id,
  description,
  content: {
    'application/problem+json': { schema: Problem, example: problem(code, more) },
  },
});

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
  413: refusal('TooLarge', 'The body is too large.', 'REQUEST_TOO_LARGE', {
    detail: 'Request body is too large',
  }),
  415: refusal(
    'MediaTypeUnsupported',
    'The body is not application/json.',
    'MEDIA_TYPE_UNSUPPORTED',
    { detail: 'Unsupported Media Type' },
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
  503: refusal('Unavailable', 'Redis does not answer. Try again later.', 'QUEUE_UNAVAILABLE', {
    detail: 'redis does not answer',
  }),
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
/** What a route that reads a body can answer with, besides what that breaks. */
export const BODY_REFUSED = { 413: REFUSALS[413], 415: REFUSALS[415] };
export const UNAVAILABLE = { 500: REFUSALS[500], 503: REFUSALS[503] };

/** What a route makes of a request that breaks a rule, or that something stands against: each code with an example. */
export function refusedBy(...codes: readonly RouteCode[]) {
  const of = (status: number, description: string) => {
    const own = codes.filter((code) => CATALOGUE[code].httpStatus === status);
    const examples = Object.fromEntries(
      own.map((code) => [
        code,
        { summary: CATALOGUE[code].title, value: problem(code, OCCASIONS[code]) },
      ]),
    );
    const list = own.map((code) => `\`${code}\``).join(', ');
    const content = { 'application/problem+json': { schema: Problem, examples } };
    return own.length === 0
      ? {}
      : { [status]: { description: `${description} ${list}.`, content } };
  };
  return {
    ...of(409, 'Something stands against it:'),
    ...of(422, 'The request can be read but breaks a rule:'),
    ...of(503, 'It does not answer for now; try again later:'),
  };
}

/** The clone of which something was asked that its worker has to do. */
export const acceptedClone = (id: string, description: string, example = ENDED_CLONE_EXAMPLE) => ({
  202: {
    id,
    description,
    content: { 'application/json': { schema: Clone, example } },
  },
});
