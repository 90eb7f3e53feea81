/** Bodies of requests: JSON, or none. */
import { CloneError } from '@pgcloned/contract';
import type { FastifyInstance, FastifyRequest } from 'fastify';

/** Many clients name the type with every request, so an empty body is none, and not JSON that ends too early. */
export function takeJson(
  app: Pick<FastifyInstance, 'getDefaultJsonParser' | 'addContentTypeParser'>,
  type: string,
): void {
  const parseJson = app.getDefaultJsonParser('error', 'error');
  app.addContentTypeParser<string>(type, { parseAs: 'string' }, (request, body, done) => {
    if (body === '') done(null, undefined);
    else void parseJson(request, body, done);
  });
}

/**
 * Else the schema would complain about fields of something that nobody has sent.
 *
 * @throws {CloneError} `REQUEST_MALFORMED`
 */
export function refuseNoBody({ body }: FastifyRequest, hint: string): void {
  if (body === undefined)
    throw new CloneError('REQUEST_MALFORMED', 'the request has no body', { hint });
}

/**
 * Or somebody would believe that it was heard. An empty object says nothing, and many clients send one.
 *
 * @throws {CloneError} `REQUEST_INVALID`
 */
export function refuseUselessBody({ body, routeOptions }: FastifyRequest): void {
  if (routeOptions.schema?.body !== undefined || body === undefined || body === null) return;
  if (typeof body === 'object' && Object.keys(body).length === 0) return;
  throw new CloneError('REQUEST_INVALID', 'this request takes no body', {
    hint: 'Leave the body out; `/docs` says what each request takes.',
  });
}
