/**
 * One clone that is asked for while parts of the product are killed and started again: what does not answer is asked
 * again, and only the record says how it ended.
 */
import { readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, hasEnded } from '@pgcloned/contract';
import { type Answer, freePort, stopServer } from '@pgcloned/testbed';
import type { Stage } from './stage.ts';

const POLL_MS = 100;
/** Of a clone with everything that may befall it; a link that is dead for a minute costs two. */
const CLONE_MS_MAX = 240_000;
/** Some seconds for the copy, so that there is a middle. */
export const SLOW = { maxRate: 14_000_000 };

export interface Transfer {
  readonly maxRate?: number;
  readonly transport?: 'ssh';
}

export type Target = ReturnType<Stage['targetOf']>;

export async function askForClone(
  stage: Stage,
  target: Target,
  transfer: Transfer = {},
): Promise<Clone> {
  const replica = { start: true, waitFor: 'streaming', port: await freePort() };
  const body = {
    source: { name: 'orders' },
    target,
    ...(stage.setting === 'local'
      ? // It can be compared with what it was made of.
        { method: 'reflink', replica: { ...replica, role: 'standby' } }
      : { transfer: { workers: 2, ...transfer }, replica }),
  };
  const { status, body: clone } = await answer(stage, 'POST', '/v1/clones', body);
  if (status !== 202) throw new Error(`the clone was refused: ${JSON.stringify(clone)}`);
  return clone;
}

/** The record once it has ended. @throws If that takes too long, or the signal aborts. */
export async function untilEnded(
  stage: Stage,
  { id }: Clone,
  signal?: AbortSignal,
): Promise<Clone> {
  const deadline = performance.now() + CLONE_MS_MAX;
  let last: Clone | null = null;
  while (performance.now() < deadline) {
    signal?.throwIfAborted();
    const { status, body } = await answer(stage, 'GET', `/v1/clones/${id}`);
    if (status === 200) {
      last = body;
      if (hasEnded(body.state)) return body;
    }
    await delay(POLL_MS);
  }
  throw new Error(
    `the clone does not end: ${JSON.stringify(last)}\n${logOf(stage, id).join('\n')}`,
  );
}

/** The first answer that is none of a part that is away. */
async function answer(stage: Stage, ...request: Parameters<Answered>): Promise<Answer> {
  const deadline = performance.now() + CLONE_MS_MAX;
  for (;;) {
    try {
      const found = await stage.pgcloned.request(...request);
      if (found.status !== 503) return found;
    } catch (error) {
      // The API is down.
      if (performance.now() > deadline) throw error;
    }
    await delay(POLL_MS);
  }
}

type Answered = (method: string, path: string, body?: unknown) => Promise<Answer>;

/** What the worker has said about it. */
function logOf({ pgcloned }: Stage, id: string): readonly string[] {
  return readFileSync(pgcloned.logFile, 'utf8')
    .split('\n')
    .filter((line) => line.includes(id));
}

/** Stops what runs there and removes it all. */
export async function removeClone(target: Target): Promise<void> {
  await stopServer(target.dataDirectory);
  for (const path of [target.dataDirectory, target.walDirectory])
    await rm(dirname(path), { recursive: true, force: true });
}
