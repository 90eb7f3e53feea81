/**
 * What a request did wrong, in words that say what is allowed.
 *
 * Zod reports an unknown key at the object around it, and hides why a key or a choice was refused one level deeper.
 * Here every broken rule gets the JSON pointer (RFC 6901) of the very place. Values are never repeated.
 */
import type { Problem } from '@pgcloned/contract';
import * as z from 'zod';

type BrokenRule = NonNullable<Problem['errors']>[number];

/** @param schema The one that was broken. */
export function brokenRules(issue: z.core.$ZodIssue, schema: unknown): readonly BrokenRule[] {
  const { path } = issue;
  switch (issue.code) {
    case 'unrecognized_keys': {
      const known = knownFields(schema, path).join(', ') || 'none';
      const message = `is not a known field; there are ${known}`;
      return issue.keys.map((key) => ({ pointer: pointerTo([...path, key]), message }));
    }
    case 'invalid_key':
      return [{ pointer: pointerTo(path), message: reasons(issue.issues) }];
    case 'invalid_union': {
      const branches = issue.errors.map((errors) => reasons(errors));
      return [{ pointer: pointerTo(path), message: [...new Set(branches)].join(', or ') }];
    }
    case 'invalid_type': {
      const isMissing = issue.message.endsWith('received undefined');
      return [{ pointer: pointerTo(path), message: isMissing ? 'is missing' : issue.message }];
    }
    default:
      return [{ pointer: pointerTo(path), message: issue.message }];
  }
}

function reasons(issues: readonly z.core.$ZodIssue[]): string {
  return issues.map(({ message }) => message).join(' and ');
}

/** The names of the fields of the object at `path`. */
function knownFields(schema: unknown, path: readonly PropertyKey[]): readonly string[] {
  let place = withoutWrapping(schema);
  for (const step of path) {
    place = place instanceof z.ZodObject ? withoutWrapping(place.shape[String(step)]) : undefined;
  }
  return place instanceof z.ZodObject ? Object.keys(place.shape) : [];
}

/** What a default or a null was put around. */
function withoutWrapping(schema: unknown): unknown {
  let inner = schema;
  while (
    inner instanceof z.ZodDefault ||
    inner instanceof z.ZodPrefault ||
    inner instanceof z.ZodNullable ||
    inner instanceof z.ZodOptional
  ) {
    inner = inner.unwrap();
  }
  return inner;
}

function pointerTo(path: readonly PropertyKey[]): string {
  return path
    .map((step) => `/${String(step).replaceAll('~', '~0').replaceAll('/', '~1')}`)
    .join('');
}
