/**
 * Whatever goes wrong is answered by a problem (RFC 9457) with a code of the catalogue.
 *
 * What cannot be read at all is 400, what can be read but breaks a rule is 422 with a JSON pointer to each place. An
 * error without a code is a bug of ours: its text stays in the log, where the request id leads.
 */
import type { Socket } from 'node:net';
import {
  CATALOGUE,
  CloneError,
  type ErrorCode,
  type Problem,
  toCloneError,
} from '@pgcloned/contract';
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';
import fastifyPlugin from 'fastify-plugin';
import { RequestValidationError } from 'fastify-zod-openapi';
import { brokenRules } from '../broken-rules.ts';
import { pathOf } from './request-log.ts';

const PROBLEM_JSON = 'application/problem+json';

/** Redis is watched and comes back within seconds; of many who wait, some have gone by then. */
const RETRY_AFTER_SECONDS = 5;

const CODE_OF_FASTIFY: Readonly<Record<string, ErrorCode>> = {
  FST_ERR_BAD_URL: 'REQUEST_MALFORMED',
  FST_ERR_CTP_INVALID_JSON_BODY: 'REQUEST_MALFORMED',
  FST_ERR_CTP_EMPTY_JSON_BODY: 'REQUEST_MALFORMED',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'REQUEST_MALFORMED',
  FST_ERR_CTP_BODY_TOO_LARGE: 'REQUEST_TOO_LARGE',
  FST_ERR_CTP_INVALID_MEDIA_TYPE: 'MEDIA_TYPE_UNSUPPORTED',
};

/** For errors that are made where no hint is at hand. */
const HINTS: Partial<Record<ErrorCode, string>> = {
  REQUEST_MALFORMED: '`/docs` describes what can be sent, and in which form.',
  REQUEST_TOO_LARGE: 'Send less: 256 KiB are enough for any clone.',
  MEDIA_TYPE_UNSUPPORTED: 'Send JSON, with `Content-Type: application/json`.',
  NOT_FOUND:
    'Look whether the path is right; `/docs` lists all, and lists of clones and hosts name theirs.',
  NOT_ACCEPTABLE: 'Send `Accept: text/event-stream`.',
};

/** What Node refuses before there is a request. */
const MALFORMED_REASONS: Readonly<Record<string, string>> = {
  HPE_HEADER_OVERFLOW: 'the headers are too large',
  ERR_HTTP_REQUEST_TIMEOUT: 'the request took too long to arrive',
};

/** For plugins that answer by themselves, past the error handler. */
const CODE_OF_STATUS: Readonly<Record<number, ErrorCode>> = {
  400: 'REQUEST_MALFORMED',
  404: 'NOT_FOUND',
  406: 'NOT_ACCEPTABLE',
};

export const problems = fastifyPlugin((app, _options, done) => {
  const routes: { readonly pattern: RegExp; readonly methods: readonly string[] }[] = [];
  app.addHook('onRoute', ({ url, method }) => {
    routes.push({ pattern: patternOf(url), methods: [method].flat() });
  });
  app.setErrorHandler(sendProblem);
  app.setNotFoundHandler((request, reply) => {
    const path = pathOf(request.url);
    const allowed = routes.filter(({ pattern }) => pattern.test(path));
    if (allowed.length === 0) throw new CloneError('NOT_FOUND', `no resource at ${path}`);
    const methods = [...new Set(allowed.flatMap((route) => route.methods))].join(', ');
    void reply.header('allow', methods);
    throw new CloneError('METHOD_NOT_ALLOWED', `${path} does not take ${request.method}`, {
      hint: `Use one of ${methods}.`,
    });
  });
  app.addHook('onSend', async (request, reply, payload) => {
    const type = String(reply.getHeader('content-type') ?? '');
    if (reply.statusCode < 400 || type.startsWith(PROBLEM_JSON)) return payload;
    void reply.type(PROBLEM_JSON).removeHeader('content-length');
    const code = CODE_OF_STATUS[reply.statusCode] ?? 'INTERNAL';
    return JSON.stringify({
      ...problemOf(new CloneError(code, ''), request.id),
      detail: undefined,
    });
  });
  done();
});

/** Fastify gives an undecodable URL to `frameworkErrors` and not to the error handler, so both end here. */
export function sendProblem(
  error: FastifyError | Error,
  request: FastifyRequest,
  reply: FastifyReply,
): void {
  const explained = explain(error);
  const problem = { ...problemOf(explained, request.id), ...rulesOf(error, request) };
  if (problem.status >= 500)
    request.log.error({ err: error, code: problem.code }, 'request failed');
  else request.log.info({ code: problem.code, detail: problem.detail }, 'request refused');
  const canComeBack = problem.status === 503 || problem.status === 429;
  if (canComeBack && !reply.hasHeader('retry-after')) {
    void reply.header('retry-after', RETRY_AFTER_SECONDS);
  }
  // Without a readable URL no hook has run that would have said it.
  void reply.header('x-request-id', request.id);
  void reply.code(problem.status).type(PROBLEM_JSON).send(problem);
}

/** For what is not HTTP, or stops in its middle: there is no request to answer, only a socket. */
export function sendMalformed(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const reason = MALFORMED_REASONS[error.code ?? ''] ?? 'this is no HTTP request';
  const body = JSON.stringify(problemOf(new CloneError('REQUEST_MALFORMED', reason), null));
  socket.end(
    `HTTP/1.1 400 Bad Request\r\nContent-Type: ${PROBLEM_JSON}\r\n` +
      `Content-Length: ${String(Buffer.byteLength(body))}\r\nConnection: close\r\n\r\n${body}`,
  );
}

function explain(error: FastifyError | Error): CloneError {
  const { code: fastifyCode, validationContext } = error as FastifyError;
  switch (validationContext) {
    case 'body':
      return new CloneError('REQUEST_INVALID', 'the body breaks a rule', {
        hint: 'Mend each place that `errors` points to; `/docs` describes every field.',
      });
    case 'params':
      return new CloneError('NOT_FOUND', 'there is nothing with such a name');
    case undefined:
      break;
    default:
      return new CloneError('REQUEST_MALFORMED', `the ${validationContext} cannot be used`);
  }
  const code = CODE_OF_FASTIFY[fastifyCode];
  return code === undefined ? toCloneError(error) : new CloneError(code, error.message);
}

function rulesOf(
  error: FastifyError | Error,
  { routeOptions }: FastifyRequest,
): Pick<Problem, 'errors'> {
  const { validation = [], validationContext } = error as FastifyError;
  const issues = validation
    .filter((issue) => issue instanceof RequestValidationError)
    .map(({ params }) => params.issue);
  if (issues.length === 0 || validationContext === undefined) return {};
  const schema = routeOptions.schema?.[validationContext as 'body' | 'querystring'];
  return { errors: issues.flatMap((issue) => brokenRules(issue, schema)) };
}

function problemOf(error: CloneError, requestId: string | null): Problem {
  const { code, message, facts, phase, retryable, httpStatus } = error;
  const { holder, ...otherFacts } = facts;
  const hint =
    code === 'INTERNAL' && requestId !== null
      ? `Report this with what the log of the API says about request ${requestId}.`
      : (error.hint ?? HINTS[code] ?? null);
  return {
    type: `urn:problem-type:pgcloned:${code}`,
    title: CATALOGUE[code].title,
    status: httpStatus,
    code,
    detail: message,
    ...(hint !== null && { hint }),
    retryable,
    ...(phase !== null && { phase }),
    ...(Object.keys(otherFacts).length > 0 && { facts: otherFacts }),
    ...(typeof holder === 'string' && { holder }),
  };
}

/** `/v1/clones/:id` as an expression that matches the paths it stands for. */
function patternOf(url: string): RegExp {
  const source = url
    .replace(/[.+?^${}()|[\]\\]/g, '\\$&')
    .replace(/\*/g, '.*')
    .replace(/:[^/]+/g, '[^/]+');
  return new RegExp(`^${source}$`);
}
