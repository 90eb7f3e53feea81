/** Short names for the schemas of the API. */
import type { components } from './schema.ts';

/** What `POST /v1/clones` takes: everything with a default may be left out. */
export type CloneSpec = components['schemas']['CloneSpec'];
export type Clone = components['schemas']['Clone'];
export type Host = components['schemas']['Host'];
export type LogLine = components['schemas']['LogLine'];
export type Problem = components['schemas']['Problem'];

/** An event of a clone: `clone` comes first, `end` last. */
export type CloneEvent =
  | { readonly event: 'clone'; readonly id: string; readonly data: Clone }
  | { readonly event: 'log'; readonly id: string; readonly data: LogLine }
  | { readonly event: 'end'; readonly id: string; readonly data: Clone };
