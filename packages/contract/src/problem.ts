/** How every error leaves the API: RFC 9457. */
import * as z from 'zod';
import { ERROR_CODES } from './clone-record.ts';
import { PHASES } from './phases.ts';

export const Problem = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    code: z.enum(ERROR_CODES),
    detail: z.string().optional(),
    hint: z.string().optional(),
    retryable: z.boolean(),
    phase: z.enum(PHASES).optional(),
    facts: z
      .record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]))
      .optional(),
    holder: z.string().optional().meta({ description: 'Id of the clone that holds the target' }),
    errors: z
      .array(z.object({ pointer: z.string(), message: z.string() }))
      .optional()
      .meta({
        description: 'Each broken rule with a JSON pointer to its place in the request',
      }),
  })
  .meta({ id: 'Problem' });

export type Problem = z.output<typeof Problem>;
