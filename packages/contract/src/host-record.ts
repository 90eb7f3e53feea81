/** What a worker says about its host, with every heartbeat. */
import * as z from 'zod';

export const HostFacts = z.object({
  name: z.string().meta({ description: 'What `target.host` of a request calls it' }),
  machineId: z.string(),
  workerId: z.string().meta({ description: 'Changes with every start of the worker' }),
  version: z.string().meta({ description: 'Of its pgcloned' }),
  contract: z
    .object({ min: z.int(), max: z.int() })
    .meta({ description: 'Versions of requests that its worker understands' }),
  postgresMajors: z.array(z.int()).meta({
    description: 'Major versions of PostgreSQL whose programs it has: of these it can make clones',
  }),
  dataRoots: z
    .array(z.string())
    .meta({ description: 'Directories below which clones may lie, and nothing else' }),
  sources: z.array(z.string()).meta({ description: 'Names of the sources that its worker knows' }),
  allowedSettings: z.array(z.string()).optional().meta({
    description: 'Settings that its worker lets requests set beyond the safe ones',
  }),
  filesystems: z
    .array(
      z.object({
        path: z.string().meta({ description: 'A data root; its filesystem is meant' }),
        totalBytes: z.int().meta({ description: 'Size of the filesystem' }),
        freeBytes: z.int().meta({ description: 'What its worker may still write' }),
        reflink: z.boolean().nullable().meta({
          description:
            'Whether clones by method `reflink` can be made within it; null if its worker cannot find out',
        }),
        clones: z
          .object({
            count: z.int().meta({ description: 'How many' }),
            ownBytes: z.int().meta({ description: 'What would be free without them' }),
            sharedBytes: z.int().meta({
              description:
                'What they share with their sources or with each other, counted once for each of them',
            }),
          })
          .optional()
          .meta({ description: 'The clones within it whose space was measured' }),
      }),
    )
    .meta({ description: 'One for each of `dataRoots` that is there now' }),
  concurrency: z.int().positive().meta({ description: 'How many clones it makes at a time' }),
  runningClones: z.array(z.string()).meta({ description: 'Ids of those that it makes now' }),
});

export type HostFacts = z.output<typeof HostFacts>;

export const Host = HostFacts.omit({ machineId: true, workerId: true })
  .extend({
    online: z.boolean().meta({ description: 'Whether its worker is heard of' }),
    lastSeenAt: z.iso.datetime().meta({ description: 'When it was last heard of' }),
  })
  .meta({ id: 'Host' });

export type Host = z.output<typeof Host>;
