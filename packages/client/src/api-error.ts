/**
 * What went wrong with a call, always as a problem of the API's catalogue.
 *
 * No answer, and an answer that is none of the API's (a proxy's page, say), become `API_UNREACHABLE`, so that a caller
 * has one kind of error to understand.
 */
import type { Problem } from './types.ts';

export class ApiError extends Error {
  override readonly name = 'ApiError';
  readonly problem: Problem;

  constructor(problem: Problem, options: { readonly cause?: unknown } = {}) {
    super(problem.detail ?? problem.title, options);
    this.problem = problem;
  }
}

/** @param body What the answer held: a problem, or whatever somebody between us and the API said. */
export function refusal(status: number, body: unknown): ApiError {
  if (isProblem(body)) return new ApiError(body);
  return new ApiError(
    unreachableProblem(`status ${String(status)} from something else than the API`),
  );
}

/** @throws {ApiError} `API_UNREACHABLE` if the answer has another type than the API's would have. */
export function demandType({ status, headers }: Response, type: string): void {
  if (headers.get('content-type')?.startsWith(type) !== true) throw refusal(status, null);
}

/** For a call that got no answer. */
export function unreachable(url: string, cause: unknown): ApiError {
  const reason = reasonOf(cause);
  const problem = unreachableProblem(`no answer from ${url}: ${reason}`);
  return new ApiError(
    UNTRUSTED.test(reason)
      ? { ...problem, hint: 'Set NODE_EXTRA_CA_CERTS to the file of the authority that signed it.' }
      : problem,
    { cause },
  );
}

/** What OpenSSL and Node say about a certificate that leads to no known authority. */
const UNTRUSTED = /VERIFY|SELF_SIGNED|UNABLE_TO_GET_ISSUER/;

function unreachableProblem(detail: string): Problem {
  return {
    type: 'urn:problem-type:pgcloned:API_UNREACHABLE',
    title: 'The API does not answer',
    status: 503,
    code: 'API_UNREACHABLE',
    detail,
    hint: 'Look whether `pgcloned up` or `pgcloned api` runs there, and whether the address is right.',
    retryable: true,
  };
}

function isProblem(body: unknown): body is Problem {
  return typeof body === 'object' && body !== null && 'code' in body && 'title' in body;
}

/** fetch says only "fetch failed"; why is one level deeper. */
function reasonOf(error: unknown): string {
  const { cause } = error as { cause?: { code?: unknown; message?: unknown } };
  return String(cause?.code ?? cause?.message ?? (error as Error).message);
}
