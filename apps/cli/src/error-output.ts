/**
 * How an error is told: one line, then the hint, then the facts; or one JSON object for programs.
 *
 * A stack trace is for us, not for users: it appears only when it was asked for. Whatever is no `CloneError` is a bug.
 */
import { EXIT_STATUS, toCloneError } from '@pgcloned/contract';

interface Told {
  readonly text: string;
  readonly exitStatus: number;
}

export function formatError(error: unknown, { debug }: { readonly debug: boolean }): Told {
  const { message, hint, facts, cause, code, phase, exitStatus } = toCloneError(error);
  const lines = [`pgcloned: ${phase === null ? '' : `${phase}: `}${message}`];
  if (hint !== null) lines.push(`hint: ${hint}`);
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === '') continue;
    lines.push(`${name}: ${String(value).trimEnd().replaceAll('\n', '\n    ')}`);
  }
  if (code === 'INTERNAL' && cause instanceof Error) lines.push(`cause: ${cause.message}`);
  lines.push(`code: ${code}`);
  if (debug) lines.push(stackOf(error));
  return { text: lines.join('\n  '), exitStatus: exitStatus || EXIT_STATUS.bug };
}

export function formatErrorJson(error: unknown): Told {
  const { message, hint, facts, code, phase, retryable, exitStatus } = toCloneError(error);
  return {
    text: JSON.stringify({ error: { code, message, hint, facts, phase, retryable, exitStatus } }),
    exitStatus,
  };
}

function stackOf(error: unknown): string {
  const stacks: string[] = [];
  for (let one = error; one instanceof Error; one = one.cause)
    stacks.push(one.stack ?? one.message);
  return stacks.join('\ncaused by ');
}
