/**
 * A question to the worker of a host, and its answer: what a preflight finds.
 *
 * The question lies in Redis for as long as somebody waits for the answer, and so does the answer; the job in the control
 * queue of the host only wakes the worker. Nothing of it is kept: whoever asks again gets what is true then.
 */
import { randomBytes } from 'node:crypto';
import {
  CloneError,
  type CloneSpec,
  CONTRACT_VERSION,
  PreflightAnswer,
  PreflightQuestion,
  type PreflightReport,
  recordError,
  toCloneError,
} from '@pgcloned/contract';
import type { Redis } from 'ioredis';
import type { ChangeFeed } from './change-feed.ts';
import { readHost } from './host-registry.ts';
import type { JobQueues } from './job-queues.ts';
import { answerKey, changedChannel, preflightKey } from './keys.ts';
import { parsedJson } from './parsed-json.ts';
import { ask } from './redis-connection.ts';

/** The worker ends a preflight before that; proxies between caller and API give up after a minute. */
const ANSWER_MS_MAX = 55_000;

/** A message may get lost, and a host going away sends none. */
const CHECK_MS = 2_000;

/** What nobody fetches goes by itself. */
const ANSWER_KEPT_MS = 60_000;

/**
 * Asks the worker of the target host, and waits for its answer.
 *
 * @throws {CloneError} `HOST_UNAVAILABLE` if the worker is offline or does not answer in time, and what it answers in
 *   place of a report.
 * @throws The signal's reason if `signal` aborts.
 */
export async function askForPreflight(
  spec: CloneSpec,
  {
    redis,
    feed,
    queues,
    signal,
  }: {
    readonly redis: Redis;
    readonly feed: ChangeFeed;
    readonly queues: JobQueues;
    readonly signal: AbortSignal;
  },
): Promise<PreflightReport> {
  const { host } = spec.target;
  const id = randomBytes(16).toString('hex');
  let asked = await workerOf(redis, host);
  using changes = await feed.watch(id);
  const question = JSON.stringify({ spec, contract: CONTRACT_VERSION });
  await ask(redis.set(preflightKey(id), question, 'PX', ANSWER_MS_MAX));
  await queues.addPreflight(host, id);
  const deadlineMs = performance.now() + ANSWER_MS_MAX;
  while (performance.now() < deadlineMs) {
    await changes.next({ timeoutMs: CHECK_MS, signal });
    signal.throwIfAborted();
    const answer = await ask(redis.getdel(answerKey(id)));
    if (answer !== null) return reportIn(answer, host);
    const worker = await workerOf(redis, host);
    // The one that had the question died with it, and this one is its successor.
    if (worker !== asked) await queues.addPreflight(host, id);
    asked = worker;
  }
  throw unavailable(host, `the worker of host ${host} has not answered in time`);
}

/**
 * Answers one question, if somebody still waits for it.
 *
 * @param look Makes the report. What it throws is answered in its place.
 */
export async function answerPreflight(
  redis: Redis,
  id: string,
  look: (spec: CloneSpec, id: string) => Promise<PreflightReport>,
): Promise<void> {
  const question = await ask(redis.get(preflightKey(id)));
  if (question === null) return;
  const answer = await lookFor(question, id, look).then(
    (report) => ({ report }),
    (error: unknown) => ({ error: recordError(toCloneError(error)) }),
  );
  await ask(redis.set(answerKey(id), JSON.stringify(answer), 'PX', ANSWER_KEPT_MS));
  await ask(redis.publish(changedChannel(id), 'answered'));
}

async function lookFor(
  question: string,
  id: string,
  look: (spec: CloneSpec, id: string) => Promise<PreflightReport>,
): Promise<PreflightReport> {
  const parsed = PreflightQuestion.safeParse(parsedJson(question));
  if (!parsed.success || parsed.data.contract > CONTRACT_VERSION) {
    throw new CloneError('NOT_SUPPORTED', 'the preflight was asked for by another pgcloned', {
      facts: { contractOfWorker: CONTRACT_VERSION },
      hint: 'Bring API and worker of this host to one version.',
    });
  }
  return await look(parsed.data.spec, id);
}

function reportIn(answer: string, host: string): PreflightReport {
  const parsed = PreflightAnswer.safeParse(parsedJson(answer));
  if (!parsed.success)
    throw unavailable(host, `the answer of the worker of host ${host} cannot be read`);
  if ('report' in parsed.data) return parsed.data.report;
  const { code, message, hint, facts } = parsed.data.error;
  throw new CloneError(code, message, { facts, ...(hint !== null && { hint }) });
}

/** @throws {CloneError} `HOST_UNAVAILABLE` if it is offline. */
async function workerOf(redis: Redis, host: string): Promise<string> {
  const known = await readHost(redis, host);
  if (known?.online !== true) throw unavailable(host, `the worker of host ${host} is offline`);
  return known.facts.workerId;
}

function unavailable(host: string, message: string): CloneError {
  return new CloneError('HOST_UNAVAILABLE', message, {
    facts: { host },
    hint: 'Start `pgcloned worker` on that host, or see in its log what it is busy with, and ask again.',
  });
}
