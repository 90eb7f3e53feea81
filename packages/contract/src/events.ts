/** What is said about a clone while it runs: log lines, and the events of its stream. */
import * as z from 'zod';
import type { Clone } from './clone-record.ts';
import { PHASES } from './phases.ts';

export const LOG_LEVELS = ['debug', 'info', 'warn', 'error'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export const LogLine = z
  .object({
    time: z.iso.datetime(),
    level: z.enum(LOG_LEVELS),
    phase: z.enum(PHASES).nullable().meta({ description: 'Null: in none' }),
    message: z.string().meta({ description: 'For people; its wording may change' }),
    fields: z
      .record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]))
      .meta({ description: 'What it is about' }),
  })
  .meta({ id: 'LogLine' });

export type LogLine = z.output<typeof LogLine>;

/** An event of `GET /v1/clones/{id}/events`; `end` is the last and carries the ended record. */
export type StreamEvent =
  | { readonly event: 'clone'; readonly id: string; readonly data: Clone }
  | { readonly event: 'log'; readonly id: string; readonly data: LogLine }
  | { readonly event: 'end'; readonly id: string; readonly data: Clone };
