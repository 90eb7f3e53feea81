/** The exact command, line or piece of a request that mends something. */
import * as z from 'zod';

export const Remedy = z
  .object({
    kind: z.enum(['sql', 'shell', 'prepend', 'append', 'request']).meta({
      description:
        'sql: run `text` as superuser in the database `where`; shell: run it as the user `where`; prepend, append: put it as a line at the beginning or the end of the file `where`; request: merge this JSON into the request',
    }),
    on: z.enum(['source', 'primary', 'host', 'caller']).meta({
      description:
        'source: on the source; primary: on its primary, where the source is a standby; host: on the target host; caller: where the request is',
    }),
    where: z.string().nullable().meta({
      description: 'Database, file or user, as `kind` says; null if it is not known',
    }),
    text: z.string().meta({ description: 'The exact command, line or JSON' }),
  })
  .meta({ id: 'Remedy' });

export type Remedy = z.output<typeof Remedy>;

/** Another value for a part of the request. */
export function changeRequest(part: object): Remedy {
  return { kind: 'request', on: 'caller', where: null, text: JSON.stringify(part) };
}
