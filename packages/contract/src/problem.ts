/** How every error leaves the API: RFC 9457. */
import * as z from 'zod';
import { ERROR_CODES } from './clone-record.ts';
import { PHASES } from './phases.ts';

export const Problem = z
  .object({
    type: z.string().meta({ description: 'A name for the code that is a URI; it leads nowhere' }),
    title: z.string().meta({ description: 'What the code means, whatever the occasion' }),
    status: z.int().meta({ description: 'The HTTP status, again' }),
    code: z.enum(ERROR_CODES).meta({ description: 'What to decide by' }),
    detail: z.string().optional().meta({ description: 'What happened this time' }),
    hint: z.string().optional().meta({ description: 'What can be done about it' }),
    retryable: z.boolean().meta({
      description: 'Whether the same request may succeed later without anybody mending anything',
    }),
    phase: z.enum(PHASES).optional().meta({ description: 'Where it happened, if in a phase' }),
    facts: z
      .record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]))
      .optional()
      .meta({ description: 'What was observed, for programs as well' }),
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
