/** The OpenAPI document: what generated clients and readers of /docs rely on. */
import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { parse } from 'yaml';
import * as z from 'zod';
import { openapiYaml } from '../src/openapi-yaml.ts';
import { NO_STORE, openApi } from './harness.ts';

interface Content {
  readonly schema: object;
  readonly example?: unknown;
  readonly examples?: Readonly<Record<string, { readonly value: unknown }>>;
}
interface Response {
  readonly $ref?: string;
  readonly content?: Readonly<Record<string, Content>>;
}
interface Operation {
  readonly operationId?: string;
  readonly summary?: string;
  readonly security?: unknown;
  readonly requestBody?: { readonly content: Readonly<Record<string, Content>> };
  readonly responses: Readonly<Record<string, Response>>;
}
interface Document {
  readonly openapi: string;
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: {
    readonly responses: Readonly<Record<string, Response>>;
    readonly schemas: Readonly<Record<string, object>>;
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
  for (const [status, response] of refusals) {
    const content = contentOf(response)['application/problem+json'];
    expect(content?.schema).toEqual({ $ref: '#/components/schemas/Problem' });
    const examples = examplesOf(content);
    expect(examples).not.toEqual([]);
    for (const example of examples) expect(example).toMatchObject({ status: Number(status) });
  }
});

test('every example is what its schema allows', () => {
  const contents = operations.flatMap(({ requestBody, responses }) =>
    [requestBody?.content ?? {}, ...Object.values(responses).map(contentOf)].flatMap((content) =>
      Object.values(content),
    ),
  );

  const wrong = contents.flatMap((content) => {
    const schema = schemaOf(content);
    return examplesOf(content).flatMap((example) => schema.safeParse(example).error ?? []);
  });

  expect(contents.filter((content) => examplesOf(content).length > 0).length).toBeGreaterThan(40);
  expect(wrong).toEqual([]);
  expect(schemaOf({ schema: { $ref: '#/components/schemas/Problem' } }).safeParse({}).success).toBe(
    false,
  );
});

test('every field of a request and of a record says what it means', () => {
  const mute = Object.entries(document.components.schemas).flatMap(([name, schema]) =>
    muteFields(schema as Schema, name),
  );

  expect(mute).toEqual([]);
});

test('every operation that asks for a token says how it refuses', () => {
  for (const { security, responses } of operations) {
    if (security !== undefined) continue;
    expect(Object.keys(responses)).toEqual(
      expect.arrayContaining(['400', '401', '403', '429', '500', '503']),
    );
  }
});

function contentOf(response: Response): Readonly<Record<string, Content>> {
  const { $ref } = response;
  if ($ref === undefined) return response.content ?? {};
  return document.components.responses[$ref.split('/').at(-1) ?? '']?.content ?? {};
}

function examplesOf(content: Content | undefined): readonly unknown[] {
  const { example, examples = {} } = content ?? {};
  const several = Object.values(examples).map(({ value }) => value);
  return example === undefined ? several : [example, ...several];
}

/** Names of the document mean the same in a schema of its own once they point into that. */
function schemaOf({ schema }: Content): z.ZodType {
  const whole = { ...schema, $defs: document.components.schemas };
  const text = JSON.stringify(whole).replaceAll('#/components/schemas/', '#/$defs/');
  return z.fromJSONSchema(JSON.parse(text) as Parameters<typeof z.fromJSONSchema>[0]);
}

interface Schema {
  readonly $ref?: string;
  readonly description?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly items?: Schema;
  readonly anyOf?: readonly Schema[];
}

/** What its own name says, wherever it stands. */
const SELF_EVIDENT = /\.(?:time|level|spec|progress|instance)$/;

/** A field is told by itself, by the group that it is, or by the group around it. */
function muteFields(schema: Schema, path: string): readonly string[] {
  const { properties = {}, items, anyOf = [] } = schema;
  const own = Object.entries(properties).flatMap(([name, field]) => {
    const at = `${path}.${name}`;
    if (field.description !== undefined || SELF_EVIDENT.test(at)) return [];
    return field.properties === undefined ? [at] : muteFields(field, at);
  });
  const inner = [...(items === undefined ? [] : [items]), ...anyOf];
  return [...own, ...inner.flatMap((one) => muteFields(one, path))];
}
