/** The public record of a clone: what the API answers, the event stream sends and the worker writes. */
import * as z from 'zod';
import { CloneId } from './clone-id.ts';
import { CloneSpec, COMPRESSIONS, type TransferLimits, Ttl } from './clone-spec.ts';
import { STATES } from './clone-state.ts';
import { CATALOGUE, type CloneError, type ErrorCode } from './errors.ts';
import { PHASE_STATES, PHASES } from './phases.ts';

const Sent = z.enum(COMPRESSIONS).nullable();
const Time = z.iso.datetime();
const Bytes = z.int().nonnegative();
const Lsn = z.string().regex(/^[0-9A-F]{1,8}\/[0-9A-F]{1,8}$/);

export const ERROR_CODES = Object.keys(CATALOGUE) as [ErrorCode, ...ErrorCode[]];
export const Facts = z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null()]));

export const RecordError = z
  .object({
    code: z.enum(ERROR_CODES).meta({ description: 'What to decide by' }),
    message: z.string().meta({ description: 'What happened this time' }),
    hint: z.string().nullable().meta({ description: 'What can be done about it' }),
    facts: Facts.meta({ description: 'What was observed' }),
    retryable: z.boolean().meta({
      description: 'Whether the same request may succeed later without anybody mending anything',
    }),
    phase: z.enum(PHASES).nullable().meta({ description: 'Where it happened' }),
  })
  .meta({ id: 'CloneFailure' });

export type RecordError = z.output<typeof RecordError>;

/** What a record tells of an error. */
export function recordError(error: CloneError): RecordError {
  const { code, message, hint, facts, retryable, phase } = error;
  return { code, message, hint, facts: { ...facts }, retryable, phase };
}

export const Progress = z
  .object({
    bytesTotal: Bytes.meta({ description: 'What is to be copied; 0 until the files are listed' }),
    bytesDone: Bytes.meta({ description: 'What is here of that' }),
    filesTotal: Bytes.meta({ description: 'How many files that are' }),
    filesDone: Bytes.meta({ description: 'How many of them are complete' }),
    wireBytes: Bytes.meta({
      description:
        'What went over the network, of all attempts; the files on their way are missing. What had come of a file of which only differences are sent is missing for good if that transfer broke off',
    }),
    keptBytes: Bytes.meta({
      description:
        'Of `bytesDone`: what was here when the copy last began, and need not be sent again',
    }),
    compression: Sent.meta({
      description:
        'What files are compressed with on their way, for the most part; null before the copy, and until `auto` has picked something',
    }),
    bytesPerSecond: Bytes.meta({ description: 'Of all workers together, as of late' }),
    etaSeconds: Bytes.nullable().meta({
      description: 'Seconds that the rest of the copy will take at this rate; null: not known',
    }),
    wal: z.object({
      startLsn: Lsn.nullable().meta({ description: 'Where the backup starts' }),
      receivedLsn: Lsn.nullable().meta({ description: 'How far WAL has been received' }),
    }),
    phases: z
      .array(
        z.object({
          name: z.enum(PHASES),
          state: z.enum(PHASE_STATES),
          startedAt: Time.nullable(),
          endedAt: Time.nullable(),
        }),
      )
      .meta({
        description:
          'All eight, in their order. skipped is kept for phases that a later version may leave out',
      }),
    workers: z
      .array(z.object({ index: z.int().nonnegative(), bytesDone: Bytes, bytesPerSecond: Bytes }))
      .meta({ description: 'Those that copy now' }),
  })
  .meta({ id: 'Progress' });

export type Progress = z.output<typeof Progress>;

const Verdict = z.enum(['passed', 'failed', 'skipped']);

export type Verdict = z.output<typeof Verdict>;

export const CloneResult = z
  .object({
    dataDirectory: z.string().meta({ description: 'Where PGDATA lies on the host' }),
    connectionString: z.string().nullable().meta({
      description:
        'For libpq on the host, to a database of the clone through its unix socket; null: the clone was not started',
    }),
    source: z
      .object({
        address: z.string().meta({ description: 'HOST:PORT' }),
        role: z.enum(['primary', 'standby']).meta({ description: 'What it was then' }),
      })
      .meta({ description: 'The server that was copied' }),
    systemIdentifier: z
      .string()
      .meta({ description: 'Of source and clone, as text: it has more digits than a JSON number' }),
    timeline: z.int().positive().meta({ description: 'Of the source at the start of the backup' }),
    startLsn: Lsn.meta({ description: 'Where the backup starts' }),
    stopLsn: Lsn.meta({ description: 'Where it ends' }),
    bytes: Bytes.meta({ description: 'Size of all files that were copied, WAL not counted' }),
    files: Bytes.meta({ description: 'How many files were copied' }),
    wireBytes: Bytes.meta({ description: 'What went over the network for them, as in `progress`' }),
    keptBytes: Bytes.meta({
      description:
        'Of `bytes`: what was there already and was not sent, whole files and parts of files',
    }),
    compression: Sent.meta({ description: 'What files were compressed with, as in `progress`' }),
    durationMs: Bytes.meta({
      description: 'Milliseconds from its start to its end, all attempts together',
    }),
    warnings: z.array(z.string()).meta({ description: 'The same as of the clone' }),
    verification: z
      .object({ transfer: Verdict, wal: Verdict, pages: Verdict, boot: Verdict })
      .meta({
        description:
          'Which proofs were made, and how they ended. transfer: the digest that rsync makes of each file on both sides, of what was kept the journal of the copy, of reflinks that they share their blocks; wal: every record between start and end was read; pages: the checksum of every page that replay does not write anew, failed if one is corrupt on the source, which a warning names; boot: as `verification.boot` says',
      }),
  })
  .meta({ id: 'CloneResult' });

export type CloneResult = z.output<typeof CloneResult>;

export const Leftover = z
  .object({
    what: z.string().meta({ description: 'What could not be removed' }),
    remedy: z.string().meta({ description: 'The command that removes it' }),
  })
  .meta({ id: 'Leftover' });

export type Leftover = z.output<typeof Leftover>;

const INSTANCE_STATES = [
  'absent',
  'unfinished',
  'stopped',
  'running',
  'removing',
  'removed',
] as const;

export const Instance = z
  .object({
    state: z.enum(INSTANCE_STATES).meta({
      description:
        'What lies in the data directory, as the worker sees it every few seconds. absent: nothing of this clone; unfinished: a copy that cannot be started; removed: nothing any more, because that was asked for or its time was over',
    }),
    port: z
      .int()
      .nullable()
      .meta({ description: 'Where its server listens; null unless it is running' }),
    expiresAt: Time.nullable().meta({
      description: 'When its files are removed, unless it is protected then; null: never',
    }),
    protected: z
      .boolean()
      .meta({ description: 'Neither DELETE nor the end of its time removes it' }),
    space: z
      .object({
        ownBytes: Bytes.meta({ description: 'What would be free without it' }),
        sharedBytes: Bytes.meta({
          description:
            'What it shares with its source or with other clones, and has not changed since',
        }),
      })
      .nullable()
      .default(null)
      .meta({
        description:
          'What its files take of their filesystem, measured soon after its end and then every ten minutes; null: not measured yet, or the filesystem does not tell',
      }),
    error: RecordError.nullable().default(null).meta({
      description: 'Why what was last asked for could not be done',
    }),
  })
  .meta({ id: 'Instance' });

export type Instance = z.output<typeof Instance>;

/** Whether something of the clone lies on its host, or may do so. */
export function hasFiles({ state }: Instance): boolean {
  return state !== 'absent' && state !== 'removed';
}

/** What is asked of the worker for the instance of a clone. What is left out stays as it is. */
export const InstanceWish = z.strictObject({
  server: z.enum(['running', 'stopped']).optional(),
  /** Seconds from when the worker hears of it; null: for ever. */
  ttl: Ttl.nullable().optional(),
  /** When the ttl was asked for, by the clock of the API. */
  askedAt: Time.optional(),
  protected: z.boolean().optional(),
  remove: z.literal(true).optional(),
});

export type InstanceWish = z.output<typeof InstanceWish>;

export const Clone = z
  .object({
    id: CloneId,
    state: z.enum(STATES).meta({
      description: 'The last three are for ever; of a cancelled clone nothing runs any longer',
    }),
    contact: z.enum(['ok', 'lost']).meta({
      description: 'Whether its worker is heard of; a clone whose contact is lost may still run',
    }),
    lostSince: Time.nullable().meta({ description: 'Null unless its contact is lost' }),
    phase: z.enum(PHASES).nullable().meta({ description: 'Where it is, or where it ended' }),
    attempt: z.int().positive().meta({
      description: 'Numbers its attempts; each builds upon what the one before has copied',
    }),
    spec: CloneSpec,
    resetOf: CloneId.nullable().default(null).meta({
      description:
        'The clone whose place this one takes: its server is stopped when this one begins, and its files go when this one is there',
    }),
    createdAt: Time.meta({ description: 'When it was asked for' }),
    startedAt: Time.nullable().meta({ description: 'When a worker first began it; null: not yet' }),
    endedAt: Time.nullable().meta({ description: 'When its state became one of the last three' }),
    host: z.string().meta({ description: 'Whose worker makes it' }),
    waitingFor: z.string().nullable().meta({
      description:
        'Why a clone does not move: for its turn, for the next attempt, or for something on a host, such as free space',
    }),
    progress: Progress,
    result: CloneResult.nullable().meta({ description: 'Null unless it has succeeded' }),
    warnings: z.array(z.string()).meta({ description: 'What somebody should know, for people' }),
    instance: Instance,
    error: RecordError.nullable().meta({ description: 'Why it failed; null unless it has' }),
    leftovers: z.array(Leftover).meta({ description: 'What could not be put away' }),
  })
  .meta({ id: 'Clone' });

export type Clone = z.output<typeof Clone>;

/** Whether the directory of the clone can be started: from there a cancel comes too late. */
export function isPublished({ progress }: Pick<Clone, 'progress'>): boolean {
  return progress.phases.some(({ name, state }) => name === 'publish' && state === 'done');
}

/** The progress of a clone that has not begun. */
export function noProgress(): Progress {
  return {
    bytesTotal: 0,
    bytesDone: 0,
    filesTotal: 0,
    filesDone: 0,
    wireBytes: 0,
    keptBytes: 0,
    compression: null,
    bytesPerSecond: 0,
    etaSeconds: null,
    wal: { startLsn: null, receivedLsn: null },
    phases: PHASES.map((name) => ({ name, state: 'waiting', startedAt: null, endedAt: null })),
    workers: [],
  };
}

/** The clone with other limits of its transfer. */
export function withTransfer(clone: Clone, limits: TransferLimits): Clone {
  return { ...clone, spec: { ...clone.spec, transfer: { ...clone.spec.transfer, ...limits } } };
}

/**
 * The instance of a clone that ends now: from here its time counts, also that of an unfinished copy, unless that is what is
 * left of a cluster that was to be brought up to date.
 */
export function expiring({ spec, instance }: Clone, endedAt: string): Instance {
  const isRest = instance.state === 'unfinished' && spec.target.ifExists === 'resync';
  if (spec.ttl === null || !hasFiles(instance) || isRest) return instance;
  return { ...instance, expiresAt: expiryAfter(spec.ttl, Date.parse(endedAt)) };
}

export function expiryAfter(ttlSeconds: number, nowMs: number): string {
  return new Date(nowMs + ttlSeconds * 1000).toISOString();
}

/**
 * What is asked for when a clone is made again in its place, from the source's state of then: it keeps port, protection and
 * labels, and never goes sooner than it would have.
 */
export function specOfReset({ spec, instance }: Clone, nowMs: number): CloneSpec {
  const { target, replica } = spec;
  const leftSeconds =
    instance.expiresAt === null ? null : Math.ceil((Date.parse(instance.expiresAt) - nowMs) / 1000);
  return {
    ...spec,
    target: { ...target, ifExists: 'replace' },
    replica: {
      ...replica,
      port: replica.settings.port === undefined ? (replica.port ?? instance.port) : null,
    },
    deadline: null,
    ttl: leftSeconds === null ? null : Math.max(spec.ttl ?? 1, leftSeconds),
    protected: instance.protected,
  };
}

/** The record of a clone that was just accepted. */
export function newClone({
  id,
  spec,
  createdAt,
  resetOf = null,
}: {
  readonly id: string;
  readonly spec: CloneSpec;
  readonly createdAt: string;
  readonly resetOf?: string | null;
}): Clone {
  return {
    id,
    state: 'queued',
    contact: 'ok',
    lostSince: null,
    phase: null,
    attempt: 1,
    spec,
    resetOf,
    createdAt,
    startedAt: null,
    endedAt: null,
    host: spec.target.host,
    waitingFor: null,
    progress: noProgress(),
    result: null,
    warnings: [],
    instance: {
      state: 'absent',
      port: null,
      expiresAt: null,
      protected: spec.protected,
      space: null,
      error: null,
    },
    error: null,
    leftovers: [],
  };
}
