/** An API with three tokens, and what it says to its log. */
import { createHash } from 'node:crypto';
import type { Token } from '@pgcloned/contract';
import type { CloneStore } from '@pgcloned/queue';
import { pino } from 'pino';
import { expect } from 'vitest';
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
      expect(undocumented(lines, app.swagger() as unknown as Document)).toEqual([]);
    },
  };
}

type Line = Readonly<Record<string, unknown>>;
interface Document {
  readonly paths: Readonly<
    Record<string, Readonly<Record<string, { readonly responses: object }>>>
  >;
  readonly components: { readonly responses: Readonly<Record<string, object>> };
}

/** Refusals, as METHOD PATH CODE, that the document does not tell of the operation which was called. */
function undocumented(lines: readonly Line[], { paths, components }: Document): readonly string[] {
  return lines.flatMap(({ reqId, code }) => {
    const answer = lines.find((line) => line.reqId === reqId && line.status !== undefined);
    if (typeof code !== 'string' || code === 'METHOD_NOT_ALLOWED' || answer === undefined)
      return [];
    const [path, method] = [String(answer.path), String(answer.method).toLowerCase()];
    const template = Object.keys(paths).find((one) =>
      new RegExp(`^${one.replace(/\{\w+\}/g, '[^/]+')}$`).test(path),
    );
    const operation = template === undefined ? undefined : paths[template]?.[method];
    if (operation === undefined) return [];
    const text = JSON.stringify(operation.responses).replace(
      /"#\/components\/responses\/(\w+)"/g,
      (_ref, name: string) => JSON.stringify(components.responses[name]),
    );
    return text.includes(`"code":"${code}"`) ? [] : [`${method} ${template ?? ''} ${code}`];
  });
}
