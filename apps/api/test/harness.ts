/** An API with three tokens, and what it says to its log. */
import { createHash } from 'node:crypto';
import type { Token } from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';
import { pino } from 'pino';
import { buildApi } from '../src/app.ts';

export const SECRETS = {
  viewer: 'viewer-secret-0b5e',
  operator: 'operator-secret-93d1',
  admin: 'admin-secret-77c4',
} as const;

export const TOKENS: readonly Token[] = (['viewer', 'operator', 'admin'] as const).map((role) => ({
  name: `the-${role}`,
  sha256: createHash('sha256').update(SECRETS[role]).digest('hex'),
  role,
}));

export const asViewer = { authorization: `Bearer ${SECRETS.viewer}` };
export const asOperator = { authorization: `Bearer ${SECRETS.operator}` };
export const asAdmin = { authorization: `Bearer ${SECRETS.admin}` };

/** For tests that end before the store is asked. */
export const NO_STORE = {} as CloneStore;

export function recordingLogger() {
  const lines: { level: number; msg: string; [field: string]: unknown }[] = [];
  const logger = pino(
    { level: 'trace' },
    { write: (line: string) => void lines.push(JSON.parse(line) as never) },
  );
  return { lines, logger };
}

export async function openApi(store: CloneStore) {
  const { lines, logger } = recordingLogger();
  const app = await buildApi({ store, tokens: TOKENS, logger });
  return {
    app,
    lines,
    [Symbol.asyncDispose]: async () => {
      await app.close();
    },
  };
}
