/** What the operating system says about processes, for assertions. */
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { expect } from 'vitest';

/** A zombie does not count: it holds nothing, and who reaps it is not our affair. */
export function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return !stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z');
  } catch {
    // There is no such process.
    return false;
  }
}

export async function expectGone(pid: number): Promise<void> {
  for (let tries = 0; tries < 500 && isAlive(pid); tries += 1) await delay(10);
  expect(isAlive(pid), `process ${pid} is alive`).toBe(false);
}
