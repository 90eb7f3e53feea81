/** What a worker says about its host, with every heartbeat. */
import * as z from 'zod';

export const HostFacts = z.object({
  name: z.string(),
  machineId: z.string(),
  workerId: z.string().meta({ description: 'Changes with every start of the worker' }),
  version: z.string(),
  contract: z.object({ min: z.int(), max: z.int() }),
  postgresMajors: z.array(z.int()),
  dataRoots: z.array(z.string()),
  sources: z.array(z.string()).meta({ description: 'Names of the sources that its worker knows' }),
  allowedSettings: z.array(z.string()).optional().meta({
    description: 'Settings that its worker lets requests set beyond the safe ones',
  }),
  filesystems: z.array(
    z.object({
      path: z.string(),
      bytesTotal: z.int(),
      bytesFree: z.int(),
      reflink: z.boolean().nullable().meta({
        description:
          'Whether clones by method `reflink` can be made within it; null if its worker cannot find out',
      }),
      clones: z
        .object({
          count: z.int(),
          ownBytes: z.int().meta({ description: 'What would be free without them' }),
          sharedBytes: z.int().meta({
            description:
              'What they share with their sources or with each other, counted once for each of them',
          }),
        })
        .optional()
        .meta({ description: 'The clones within it whose space was measured' }),
    }),
  ),
  concurrency: z.int().positive(),
  runningClones: z.array(z.string()),
});

export type HostFacts = z.output<typeof HostFacts>;

export const Host = HostFacts.omit({ machineId: true, workerId: true })
  .extend({ online: z.boolean(), lastSeenAt: z.iso.datetime() })
  .meta({ id: 'Host' });

export type Host = z.output<typeof Host>;
