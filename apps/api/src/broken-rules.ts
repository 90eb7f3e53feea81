/**
 * What a request did wrong, in words that say what is allowed.
 *
 * Zod reports an unknown key at the object around it, and hides why a key or a choice was refused one level deeper.
 * Here every broken rule gets the JSON pointer (RFC 6901) of the very place. Values are never repeated.
 */
import type { Problem } from '@pgcloned/contract';
import type * as z from 'zod';

type BrokenRule = NonNullable<Problem['errors']>[number];

/** Of an issue whose path is below `above`. */
export function brokenRules(
  issue: z.core.$ZodIssue,
  above: readonly PropertyKey[] = [],
): readonly BrokenRule[] {
  const path = [...above, ...issue.path];
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => ({
        pointer: pointerTo([...path, key]),
        message: 'is not a known field',
      }));
    case 'invalid_key':
      return [{ pointer: pointerTo(path), message: reasons(issue.issues) }];
    case 'invalid_union': {
      const branches = issue.errors.map((errors) => reasons(errors));
      return [{ pointer: pointerTo(path), message: [...new Set(branches)].join(', or ') }];
    }
    default:
      return [{ pointer: pointerTo(path), message: issue.message }];
  }
}

function reasons(issues: readonly z.core.$ZodIssue[]): string {
  return issues.map(({ message }) => message).join(' and ');
}

function pointerTo(path: readonly PropertyKey[]): string {
  return path
    .map((step) => `/${String(step).replaceAll('~', '~0').replaceAll('/', '~1')}`)
    .join('');
}
