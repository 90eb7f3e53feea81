/**
 * `pgcloned clone`: clones through the API.
 *
 * Whoever waits for a clone gets its end as exit status. A signal ends the waiting and not the clone, which is said.
 */
import { randomUUID } from 'node:crypto';
import type { ApiClient, Clone } from '@pgcloned/client';
import {
  CloneError,
  type CloneState,
  hasEnded,
  LOG_LEVELS,
  type LogLevel,
  nameOfSource,
} from '@pgcloned/contract';
import { asCloneError, ask, findApi } from '../api-connection.ts';
import { formatClone, formatCloneTable, formatLimits } from '../clone-text.ts';
import { readLogLevel } from '../config.ts';
import type { GlobalOptions, Invocation, ProgressOptions } from '../invocation.ts';
import { readYaml } from '../located-yaml.ts';
import { print, printJson } from '../output.ts';
import { openDisplay } from '../progress/open-display.ts';
import { describeInstance, formatLeftovers, formatSummary } from '../summary.ts';

/** The API's own limit. */
const PAGE_SIZE_MAX = 200;

/** Well below what this command gives an answer to come. */
const WAIT_SECONDS = 5;

/** openapi-fetch leaves keys that are always null out of its types, so an answer has to be told what it is. */
interface ClonePage {
  readonly clones: readonly Clone[];
  readonly nextPageToken: string | null;
}

export async function createClone(
  invocation: Invocation,
  options: GlobalOptions & ProgressOptions & { readonly file: string; readonly wait?: boolean },
): Promise<void> {
  const { environment, signal } = invocation;
  const spec = await readYaml(options.file, 'REQUEST_INVALID');
  const api = await findApi(environment, options.config);
  const clone = await ask(
    signal,
    (limit) =>
      api.http.POST('/v1/clones', {
        // The API is the judge of what it is sent: it may know more than this command.
        body: spec.content as never,
        // Makes the request safe to repeat for whatever stands between us and the API.
        params: { header: { 'idempotency-key': randomUUID() } },
        signal: limit,
      }),
    spec.locate,
  );
  await tellAccepted(invocation, api, clone as Clone, options);
}

/** Makes it again in its place. */
export async function resetClone(
  invocation: Invocation,
  options: GlobalOptions & ProgressOptions & { readonly wait?: boolean },
  id: string,
): Promise<void> {
  const { environment, signal } = invocation;
  const api = await findApi(environment, options.config);
  const clone = await ask(signal, (limit) =>
    api.http.POST('/v1/clones/{id}/reset', {
      params: { path: { id }, header: { 'idempotency-key': randomUUID() } },
      signal: limit,
    }),
  );
  await tellAccepted(invocation, api, clone as Clone, options);
}

async function tellAccepted(
  invocation: Invocation,
  api: ApiClient,
  clone: Clone,
  options: GlobalOptions & ProgressOptions & { readonly wait?: boolean },
): Promise<void> {
  if (options.wait === true) {
    if (options.json === true) printJson({ event: 'started', id: clone.id });
    else process.stderr.write(`clone ${clone.id}\n`);
    await follow(invocation, api, clone.id, options);
  } else if (options.json === true) printJson(clone);
  else {
    print(`clone ${clone.id} is ${clone.state} on ${clone.host}`);
    print(`  follow it with: pgcloned clone watch ${clone.id}`);
  }
}

export async function listClones(
  { environment, signal }: Invocation,
  options: GlobalOptions & {
    readonly state?: CloneState;
    readonly host?: string;
    readonly label?: string;
    readonly limit: number;
  },
): Promise<void> {
  const api = await findApi(environment, options.config);
  const { state, host, label, limit } = options;
  const clones: Clone[] = [];
  let pageToken: string | undefined;
  do {
    const pageSize = Math.min(limit - clones.length, PAGE_SIZE_MAX);
    const query = {
      ...(state !== undefined && { state }),
      ...(host !== undefined && { host }),
      ...(label !== undefined && { label }),
      ...(pageToken !== undefined && { pageToken }),
      pageSize,
    };
    const page = (await ask(signal, (limit) =>
      api.http.GET('/v1/clones', { params: { query }, signal: limit }),
    )) as unknown as ClonePage;
    clones.push(...page.clones);
    pageToken = page.nextPageToken ?? undefined;
  } while (pageToken !== undefined && clones.length < limit);
  if (options.json === true) for (const clone of clones) printJson(clone);
  else print(formatCloneTable(clones));
}

export async function showClone(
  { environment, signal }: Invocation,
  { config, json }: GlobalOptions,
  id: string,
): Promise<void> {
  const api = await findApi(environment, config);
  const clone = await getClone(api, id, signal);
  if (json === true) printJson(clone);
  else print(formatClone(clone));
}

export async function watchClone(
  invocation: Invocation,
  options: GlobalOptions & ProgressOptions,
  id: string,
): Promise<void> {
  const api = await findApi(invocation.environment, options.config);
  await follow(invocation, api, id, options);
}

export async function changeClone(
  { environment, signal }: Invocation,
  {
    config,
    json,
    workers,
    maxRate,
    protect,
  }: GlobalOptions & {
    readonly workers?: number | 'auto';
    readonly maxRate?: number | 'none';
    readonly protect?: boolean;
  },
  id: string,
): Promise<void> {
  const changesTransfer = workers !== undefined || maxRate !== undefined;
  if (!changesTransfer && protect === undefined) {
    throw new CloneError('REQUEST_INVALID', 'nothing is to be changed', {
      hint: 'Give --max-rate, --workers, --protect or --no-protect.',
    });
  }
  const api = await findApi(environment, config);
  const transfer = {
    ...(workers !== undefined && { workers: workers === 'auto' ? null : workers }),
    ...(maxRate !== undefined && { maxRate: maxRate === 'none' ? null : maxRate }),
  };
  const clone = (await ask(signal, (limit) =>
    api.http.PATCH('/v1/clones/{id}', {
      params: { path: { id } },
      body: {
        ...(changesTransfer && { transfer }),
        ...(protect !== undefined && { protected: protect }),
      },
      signal: limit,
    }),
  )) as Clone;
  if (json === true) printJson(clone);
  else {
    const said = [
      ...(changesTransfer ? [formatLimits(clone)] : []),
      ...(protect === undefined ? [] : [protect ? 'protected' : 'not protected']),
    ];
    print(`clone ${id} is ${clone.state}: ${said.join(', ')}`);
  }
}

/** Settles when the worker has done it. @throws {CloneError} Why it could not. */
export async function serveClone(
  { environment, signal }: Invocation,
  { config, json }: GlobalOptions,
  { id, action }: { readonly id: string; readonly action: 'start' | 'stop' },
): Promise<void> {
  const api = await findApi(environment, config);
  const path = `/v1/clones/{id}/${action}` as const;
  await ask(signal, (limit) => api.http.POST(path, { params: { path: { id } }, signal: limit }));
  const clone = await settled(api, id, signal);
  if (json === true) printJson(clone);
  else print(`clone ${id}: ${describeInstance(clone.instance)}`);
}

/** @param ttl Seconds from now; null: for ever. */
export async function extendClone(
  { environment, signal }: Invocation,
  { config, json }: GlobalOptions,
  { id, ttl }: { readonly id: string; readonly ttl: number | null },
): Promise<void> {
  const api = await findApi(environment, config);
  const clone = (await ask(signal, (limit) =>
    api.http.POST('/v1/clones/{id}/extend', {
      params: { path: { id } },
      body: { ttl },
      signal: limit,
    }),
  )) as Clone;
  if (json === true) printJson(clone);
  else {
    const { expiresAt } = clone.instance;
    print(`clone ${id} ${expiresAt === null ? 'stays' : `goes at ${expiresAt}`}`);
  }
}

/** The clone, once its worker has done what it was asked for. @throws {CloneError} Why it could not. */
async function settled(api: ApiClient, id: string, signal: AbortSignal): Promise<Clone> {
  let said = '';
  for (let clone = await getClone(api, id, signal); ; ) {
    const { error, state } = clone.instance;
    if (clone.waitingFor === null && state !== 'removing') {
      if (error === null) return clone;
      throw new CloneError(error.code, error.message, {
        facts: { ...error.facts, clone: id },
        ...(error.hint !== null && { hint: error.hint }),
      });
    }
    const reason = clone.waitingFor ?? 'the removal of its files';
    if (reason !== said) process.stderr.write(`waiting for ${reason}\n`);
    said = reason;
    clone = (await ask(signal, (limit) =>
      api.http.GET('/v1/clones/{id}', {
        params: { path: { id }, header: { prefer: `wait=${String(WAIT_SECONDS)}` } },
        signal: limit,
      }),
    )) as Clone;
  }
}

export async function cancelClone(
  { environment, signal }: Invocation,
  { config, json }: GlobalOptions,
  id: string,
): Promise<void> {
  const api = await findApi(environment, config);
  const clone = await ask(signal, (limit) =>
    api.http.POST('/v1/clones/{id}/cancel', { params: { path: { id } }, signal: limit }),
  );
  if (json === true) printJson(clone);
  else print(`clone ${id} is ${clone.state}`);
}

export async function deleteClone(
  { environment, signal }: Invocation,
  {
    config,
    json,
    force,
    data,
  }: GlobalOptions & { readonly force?: boolean; readonly data?: boolean },
  id: string,
): Promise<void> {
  const api = await findApi(environment, config);
  await ask(signal, (limit) =>
    api.http.DELETE('/v1/clones/{id}', {
      params: {
        path: { id },
        query: { ...(force === true && { force }), ...(data === true && { data }) },
      },
      signal: limit,
    }),
  );
  if (data === true) {
    const clone = await settled(api, id, signal);
    if (json === true) printJson(clone);
    else {
      const { state } = clone.instance;
      print(`the files of clone ${id} are ${state === 'removed' ? 'removed' : 'not there'}`);
      for (const text of formatLeftovers(clone.leftovers)) print(text);
    }
  } else if (json === true) printJson({ id, forgotten: true });
  else print(`clone ${id} is forgotten; files of it stay where they are`);
}

async function getClone(api: ApiClient, id: string, signal: AbortSignal): Promise<Clone> {
  const answer = await ask(signal, (limit) =>
    api.http.GET('/v1/clones/{id}', { params: { path: { id } }, signal: limit }),
  );
  return answer as Clone;
}

/** Shows a clone until it ends. @throws {CloneError} What it failed with, or `CANCELLED`. */
async function follow(
  { environment, signal }: Invocation,
  api: ApiClient,
  id: string,
  options: GlobalOptions & ProgressOptions,
): Promise<void> {
  const minimum = LOG_LEVELS.indexOf(readLogLevel(environment, options, 'warn'));
  let ended: Clone;
  try {
    // Asked once first: a stream is tried again for minutes, but a wrong address should be told at once.
    await getClone(api, id, signal);
    ended = await show({ api, id, options, minimum, signal });
  } catch (error) {
    if (!signal.aborted) throw asCloneError(error);
    throw new CloneError('CANCELLED', 'stopped watching; the clone goes on', {
      facts: { id },
      hint: `Watch it again with \`pgcloned clone watch ${id}\`, or stop it with \`pgcloned clone cancel ${id}\`.`,
    });
  }
  report(ended, options);
}

async function show({
  api,
  id,
  options,
  minimum,
  signal,
}: {
  readonly api: ApiClient;
  readonly id: string;
  readonly options: GlobalOptions & ProgressOptions;
  readonly minimum: number;
  readonly signal: AbortSignal;
}): Promise<Clone> {
  using display = openDisplay(options);
  const isShown = (level: LogLevel) => LOG_LEVELS.indexOf(level) >= minimum;
  let said = '';
  const say = (text: string) => {
    if (text !== said && text !== '') display.line(text);
    said = text;
  };
  for await (const { event, data } of api.watch(id, { signal })) {
    if (event === 'log') {
      if (isShown(data.level)) display.line(`${data.level}: ${data.message}`);
      continue;
    }
    display.update(data.progress);
    say(describeWaiting(data));
    if (hasEnded(data.state)) return data;
  }
  throw new Error('the stream of a clone ended without its end');
}

/** Why nothing moves, if nothing does. */
function describeWaiting({ state, waitingFor, contact, lostSince, host }: Clone): string {
  if (contact === 'lost') return `nothing is heard of ${host} since ${lostSince ?? 'a while'}`;
  if (state === 'queued') return `queued: ${waitingFor ?? `waiting for ${host}`}`;
  if (waitingFor !== null) return `waiting for ${waitingFor}`;
  return state === 'cancelling' ? 'cancelling: tidying up' : '';
}

function report(clone: Clone, { json }: GlobalOptions): void {
  const { id, state, error, result, instance, leftovers, spec } = clone;
  if (json === true) printJson({ event: 'end', clone });
  if (state === 'succeeded') {
    if (json === true || result === null) return;
    print(formatSummary({ sourceName: nameOfSource(spec.source), result, instance, leftovers }));
    return;
  }
  if (json !== true)
    for (const text of formatLeftovers(leftovers)) process.stderr.write(`${text}\n`);
  if (error === null) throw new CloneError('CANCELLED', `clone ${id} was cancelled`);
  const failure = new CloneError(error.code, error.message, {
    facts: { ...error.facts, clone: id },
    ...(error.hint !== null && { hint: error.hint }),
  });
  failure.phase = error.phase;
  throw failure;
}
