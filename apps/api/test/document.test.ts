/** The OpenAPI document: what generated clients and readers of /docs rely on. */
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import { openapiYaml } from '../src/openapi-yaml.ts';
import { NO_STORE, openApi } from './harness.ts';

interface Operation {
  readonly operationId?: string;
  readonly summary?: string;
  readonly security?: unknown;
  readonly responses: Readonly<Record<string, { readonly $ref?: string }>>;
}
interface Document {
  readonly openapi: string;
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: {
    readonly responses: Readonly<Record<string, { readonly content?: Record<string, unknown> }>>;
  };
}

const document = parse(await openapiYaml()) as Document;
const operations = Object.values(document.paths).flatMap((path) => Object.values(path));

test('openapi.yaml is the document that the API serves', async () => {
  await using api = await openApi(NO_STORE);
  const file = await readFile(new URL('../../../openapi.yaml', import.meta.url), 'utf8');
  const served = await api.app.inject('/openapi.json');

  expect(parse(file)).toEqual(JSON.parse(served.payload));
  expect(document.openapi).toBe('3.1.0');
});

test('every operation has a name of its own and a summary', () => {
  const names = operations.map(({ operationId }) => operationId);
  expect(new Set(names).size).toBe(operations.length);
  for (const { summary } of operations) expect(summary).toMatch(/^[A-Z]/);
});

test('every refusal is documented as a problem with an example', () => {
  const refusals = operations.flatMap(({ responses }) =>
    Object.entries(responses).filter(([status]) => Number(status) >= 400),
  );

  expect(refusals.length).toBeGreaterThan(operations.length);
  for (const [, { $ref = '' }] of refusals) {
    const { content } = document.components.responses[$ref.split('/').at(-1) ?? ''] ?? {};
    expect(content).toMatchObject({
      'application/problem+json': {
        schema: { $ref: '#/components/schemas/Problem' },
        example: { code: expect.anything() as string },
      },
    });
  }
});

test('every operation that asks for a token says how it refuses', () => {
  for (const { security, responses } of operations) {
    if (security !== undefined) continue;
    expect(Object.keys(responses)).toEqual(
      expect.arrayContaining(['400', '401', '403', '429', '500', '503']),
    );
  }
});
