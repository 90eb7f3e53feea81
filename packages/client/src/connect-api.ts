/**
 * Calls of the API with types for path, query, body and answer.
 *
 * It opens no connection by itself and needs no closing. Certificates are checked against what the process trusts:
 * `NODE_EXTRA_CA_CERTS`, or `tls.setDefaultCACertificates`, adds the certificate of a private authority.
 */
import createClient, { type Client } from 'openapi-fetch';
import { demandType, refusal, unreachable } from './api-error.ts';
import type { paths } from './schema.ts';
import type { CloneEvent } from './types.ts';
import { watchClone } from './watch-clone.ts';

export interface ApiClient {
  /** One method per HTTP method: `http.GET('/v1/clones/{id}', { params: { path: { id } } })`; see {@link answerOf}. */
  readonly http: Client<paths>;
  /**
   * The events of a clone until its end. A broken stream is taken up again where it broke.
   *
   * @throws {ApiError} If the API refuses, or cannot be reached for too long.
   * @throws The signal's reason if `signal` aborts.
   */
  readonly watch: (
    id: string,
    options: { readonly signal: AbortSignal },
  ) => AsyncGenerator<CloneEvent, void>;
}

export function connectApi({
  url,
  token,
}: {
  readonly url: string;
  readonly token: string;
}): ApiClient {
  const baseUrl = url.replace(/\/+$/, '');
  const headers = { authorization: `Bearer ${token}` };
  const http = createClient<paths>({ baseUrl, headers });
  http.use({
    // A proxy or a login page answers 200, too.
    onResponse: ({ response }) => {
      if (response.ok && response.status !== 204) demandType(response, 'application/json');
    },
    onError: ({ error, request }) =>
      request.signal.aborted ? undefined : unreachable(baseUrl, error),
  });
  return {
    http,
    watch: (id, { signal }) => watchClone({ baseUrl, headers, id, signal }),
  };
}

/**
 * The body of a call's answer.
 *
 * @throws {ApiError} If the API refused, or did not answer.
 */
export async function answerOf<Body>(
  call: Promise<{ readonly data?: Body; readonly error?: unknown; readonly response: Response }>,
): Promise<Body> {
  const { data, error, response } = await call;
  if (!response.ok) throw refusal(response.status, error);
  return data as Body;
}
