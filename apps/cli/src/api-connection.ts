/**
 * Calls of the REST API, with the address and the token that the user meant.
 *
 * PGCLONED_URL and PGCLONED_TOKEN come first. Without a URL the API of this machine is meant: the address of its
 * configuration, and the token in its state directory. That token is never sent to another address.
 *
 * Every failure is a `CloneError`: the API's own, or `API_UNREACHABLE`.
 */
import { readFile } from 'node:fs/promises';
import { type ApiClient, ApiError, answerOf, connectApi } from '@pgcloned/client';
import { CloneError, ERROR_CODES } from '@pgcloned/contract';
import { codeOf } from '@pgcloned/process';
import { readSettings } from './config.ts';
import type { Environment } from './invocation.ts';
import { tokenFileOf } from './state-directory.ts';

/** An answer takes milliseconds; only event streams take longer, and those have a limit of their own. */
const ANSWER_TIMEOUT_MS = 30_000;

/**
 * @throws {CloneError} `UNAUTHENTICATED` if no token can be found, `CONFIGURATION_INVALID` if PGCLONED_URL or the
 *   configuration cannot be used.
 */
export async function findApi(
  environment: Environment,
  config: string | undefined,
): Promise<ApiClient> {
  const url = environment.PGCLONED_URL;
  if (url) {
    if (!isAddressOfApi(url)) {
      // Not repeated, since a password may stand in it.
      throw new CloneError('CONFIGURATION_INVALID', 'PGCLONED_URL is not the address of an API', {
        hint: 'Write it like http://127.0.0.1:7432, without user and password: PGCLONED_TOKEN lets you in.',
      });
    }
    if (environment.PGCLONED_TOKEN) return connectApi({ url, token: environment.PGCLONED_TOKEN });
    throw new CloneError('UNAUTHENTICATED', `PGCLONED_URL is set but PGCLONED_TOKEN is not`, {
      hint: 'Set PGCLONED_TOKEN to a token of that API; `pgcloned token create` makes one.',
    });
  }
  const { api, stateDirectory } = await readSettings(environment, config);
  const local = `${api.tls === null ? 'http' : 'https'}://${api.listen
    .replace(/^0\.0\.0\.0:/, '127.0.0.1:')
    .replace(/^\[::\]:/, '[::1]:')}`;
  const token = environment.PGCLONED_TOKEN || (await readLocalToken(stateDirectory));
  return connectApi({ url: local, token });
}

/** `localhost:7432` is a URL too, of the scheme `localhost`. */
function isAddressOfApi(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, username, password } = new URL(text);
  return /^https?:$/.test(protocol) && username === '' && password === '';
}

async function readLocalToken(stateDirectory: string): Promise<string> {
  const file = tokenFileOf(stateDirectory);
  try {
    return (await readFile(file, 'utf8')).trim();
  } catch (cause) {
    const code = codeOf(cause);
    throw new CloneError(
      'UNAUTHENTICATED',
      code === 'EACCES' ? `may not read the token in ${file}` : `there is no token in ${file}`,
      {
        hint:
          code === 'EACCES'
            ? 'Run this as the user that runs pgcloned, or set PGCLONED_TOKEN.'
            : 'Start `pgcloned up` on this machine, or set PGCLONED_URL and PGCLONED_TOKEN.',
        cause,
      },
    );
  }
}

/**
 * The answer of one call.
 *
 * @throws {CloneError} What the API answered, or `API_UNREACHABLE`; the signal's reason if it aborts.
 */
export async function ask<Body>(
  signal: AbortSignal,
  call: (signal: AbortSignal) => Parameters<typeof answerOf<Body>>[0],
  placeOf?: PlaceOf,
  timeoutMs = ANSWER_TIMEOUT_MS,
): Promise<Body> {
  const timeout = AbortSignal.timeout(timeoutMs);
  try {
    return await answerOf(call(AbortSignal.any([signal, timeout])));
  } catch (error) {
    signal.throwIfAborted();
    if (timeout.aborted) {
      throw new CloneError('API_UNREACHABLE', 'the API took too long to answer', {
        facts: { seconds: timeoutMs / 1000 },
        cause: error,
      });
    }
    throw asCloneError(error, placeOf);
  }
}

/** Names the place in the user's own file to which a JSON pointer of the API leads. */
type PlaceOf = (path: readonly string[]) => string;

/** An error of the client, as one that the command line can tell. */
export function asCloneError(error: unknown, placeOf: PlaceOf = () => 'the request'): unknown {
  if (!(error instanceof ApiError)) return error;
  const { problem } = error;
  const code = ERROR_CODES.find((known) => known === problem.code) ?? 'INTERNAL';
  const broken = (problem.errors ?? []).map(({ pointer, message }) => {
    const path = pointer
      .split('/')
      .slice(1)
      .map((key) => key.replaceAll('~1', '/').replaceAll('~0', '~'));
    return `${placeOf(path)}: ${path.join('.')} ${message}`;
  });
  return new CloneError(code, problem.detail ?? problem.title, {
    facts: {
      ...problem.facts,
      ...(problem.holder !== undefined && { holder: problem.holder }),
      ...(broken.length > 0 && { errors: broken.join('\n') }),
      // An API that is newer than this command may have codes that this one does not know.
      ...(code !== problem.code && { code: problem.code }),
    },
    ...(problem.hint !== undefined && { hint: problem.hint }),
    cause: error,
  });
}
