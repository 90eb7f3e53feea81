/**
 * What a caller asks for: the body of `POST /v1/clones` and the file given to `pgcloned run`.
 *
 * The schema is the single source of validation, types, defaults and the OpenAPI document. It holds every value that
 * the product will know in the end; `refuseUnsupported` answers those that are not built yet, so that none is ignored.
 */
import * as z from 'zod';
import { CloneId } from './clone-id.ts';
import { CloneError } from './errors.ts';
import { SETTING_NAME } from './settings.ts';
import { LocalSource, SourceConfiguration } from './source.ts';

/** Without the control characters of C0 and C1: either can lead a terminal astray that shows them. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: refusing them is the purpose
const TEXT = /^[^\u0000-\u001f\u007f-\u009f]*$/;

/** An absolute path without `.` and `..` components. Blanks and other oddities are legal; a NUL or a line break is not. */
const AbsolutePath = z
  .string()
  .max(4096)
  .regex(/^\//, 'must be an absolute path')
  .refine((path) => TEXT.test(path), 'must not contain control characters')
  .refine(
    (path) => !path.split('/').some((component) => component === '.' || component === '..'),
    'must not contain . or .. components',
  )
  .transform((path) => path.replace(/\/+/g, '/').replace(/(.)\/$/, '$1'))
  .meta({ override: { type: 'string', maxLength: 4096, pattern: '^/' } });

export const HostName = z
  .string()
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/,
    'must be 1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first',
  )
  .meta({ description: 'Name of a host, as its worker registered it' });

const SlotName = z
  .string()
  .regex(/^[a-z0-9_]{1,63}$/, 'must be 1 to 63 lower-case letters, digits or underscores');

const Label = z.string().max(256).regex(TEXT, 'must not contain control characters');

const Target = z.strictObject({
  host: HostName,
  dataDirectory: AbsolutePath.meta({
    description:
      'Where PGDATA shall lie: an absolute path on the host, below one of its `dataRoots`, without . and .. in it',
  }),
  walDirectory: AbsolutePath.nullable()
    .default(null)
    .meta({ description: 'Where pg_wal shall lie, an absolute path; null: inside PGDATA' }),
  temporaryWalDirectory: AbsolutePath.nullable().default(null).meta({
    description:
      'Where WAL is collected during the copy, an absolute path, best on the filesystem of pg_wal; null: beside pg_wal',
  }),
  tablespaces: z.record(AbsolutePath, AbsolutePath).default({}).meta({
    description:
      'Location on the source: location on the host, both absolute paths. What is not named keeps its location',
  }),
  ifExists: z.enum(['fail', 'replace', 'resync']).default('fail').meta({
    description:
      'fail: the directory must be absent or empty; replace: a full copy beside it takes its place at the end; resync: an older state of the same cluster is brought up to date in place, and cannot be started any more once the copy has begun, also if the clone fails',
  }),
});

/** How files are compressed on their way. */
export const COMPRESSIONS = ['none', 'lz4', 'zstd'] as const;
export type Compression = (typeof COMPRESSIONS)[number];

export const WORKERS_MAX = 64;

const Workers = z.int().min(1).max(WORKERS_MAX).nullable().meta({
  description:
    'rsync processes at a time, or threads that make reflinks; null: as many as the host has cores, at most 8',
});
const MaxRate = z.int().min(10_000).nullable().meta({
  description:
    'Bytes per second of all workers together, for files: WAL is streamed beside it; null: no limit',
});

const Transfer = z.strictObject({
  workers: Workers.default(null),
  maxRate: MaxRate.default(null),
  compression: z
    .enum([...COMPRESSIONS, 'auto'])
    .default('none')
    .meta({
      description:
        'On the way; it pays where the network is slower than the disks, and takes cores of the source. auto: what turns out to be the fastest, by trying',
    }),
  transport: z.enum(['rsyncd', 'ssh']).default('rsyncd').meta({
    description:
      'rsyncd: an rsync daemon on a port of the source, for as long as the copy lasts; not encrypted. ssh: rsync over the OpenSSH client, encrypted and without a port of its own: for a network that one does not trust',
  }),
  checksum: z.boolean().default(false).meta({
    description: 'Compare contents instead of size and time wherever a file is there already',
  }),
  fallback: z.enum(['fail', 'copy']).default('fail').meta({
    description:
      'Of method reflink, where the filesystem of the source cannot share blocks with that of the clone: fail, or copy every byte, which takes its time and its room',
  }),
});

const Wal = z.strictObject({
  retention: z.enum(['pin', 'none']).default('pin').meta({
    description:
      'pin: a temporary slot keeps the WAL on the source until the clone no longer needs it. none: no slot is taken, and the clone fails if the source removes WAL too early',
  }),
});

const Verification = z.strictObject({
  pages: z.boolean().nullable().default(null).meta({
    description:
      'Check the page checksums of the copy, if the cluster has any. A page that is corrupt on the source is copied as it is and named in a warning. null: yes for method rsync, no for method reflink: its copy shares the blocks of the source, and reading all of them would take longer than everything else',
  }),
  manifest: z.boolean().default(false).meta({
    description:
      'Leave a backup_manifest, by which pg_verifybackup tells whether a file has changed since; a server that runs on the clone changes them',
  }),
  boot: z.boolean().default(false).meta({
    description:
      'Before anybody else may, start a private server on the published clone: it has to become consistent, no file of a relation may be missing, and pg_amcheck, which reads all tables and indexes, must find no fault in databases that have the extension amcheck',
  }),
});

const SettingValue = z.union([
  z.string().max(1024).regex(TEXT, 'must not contain control characters'),
  z.number(),
  z.boolean(),
]);

const PORT_MAX = 65_535;

/** Of two ports one would be ignored. */
const isPortAtMostOnce = ({
  port,
  settings,
}: {
  readonly port: number | null;
  readonly settings: Readonly<Record<string, unknown>>;
}): boolean => {
  if (settings.port === undefined) return true;
  const chosen = Number(String(settings.port));
  return port === null && Number.isInteger(chosen) && chosen >= 1 && chosen <= PORT_MAX;
};

const Replica = z
  .strictObject({
    role: z.enum(['standby', 'detached']).nullable().default(null).meta({
      description:
        'standby: follows the source. detached: a cluster of its own from the moment of the copy on, which takes writes, has a new timeline, and neither archives, replicates nor runs scheduled jobs. null: standby for method rsync, detached for method reflink',
    }),
    start: z.boolean().default(false).meta({ description: 'Start the server of the clone' }),
    waitFor: z.enum(['files', 'consistent', 'streaming', 'writable']).default('files').meta({
      description:
        'When the clone counts as succeeded. files: once its files are in place; consistent: once its server has reached a consistent state; streaming: once a standby streams; writable: once a detached clone takes writes. Without `start` it is waited for until somebody else starts it, for `hold` seconds. A detached clone that is started is waited for until it takes writes in any case',
    }),
    hold: z
      .int()
      .min(0)
      .max(7 * 86_400)
      .default(3600)
      .meta({
        description:
          'Seconds for which WAL is kept, with `waitFor` other than files, for a replica that somebody else starts; at most 7 days',
      }),
    port: z.int().min(1).max(PORT_MAX).nullable().default(null).meta({
      description:
        'Port of the clone; null: the one in its configuration, or a free one of `worker.ports` if it is detached or shares the host of the source',
    }),
    profile: z.enum(['small']).nullable().default(null).meta({
      description:
        'small: settings of memory that let many clones share a host; `settings` win over them',
    }),
    settings: z
      .record(z.string().regex(SETTING_NAME, 'is not the name of a setting'), SettingValue)
      .default({})
      .meta({
        description:
          'Settings of the clone by name, from a list of harmless ones and what `allowedSettings` of the host adds; a value is written as in postgresql.conf, without quotes, such as 128MB',
      }),
    slot: SlotName.nullable().default(null).meta({
      description:
        'A permanent replication slot for the standby, made on the source, which stays there until the files are removed with `DELETE …?data=true`; null: none',
    }),
    clusterName: z
      .string()
      // Also the application_name by which the source knows the standby: PostgreSQL changes anything else in it.
      .regex(/^[\x20-\x7e]{1,63}$/, 'must be 1 to 63 printable ASCII characters')
      .nullable()
      .default(null)
      .meta({
        description:
          'cluster_name of the clone, by which the source knows the standby as well; null: name of the host and the end of the id, such as replica-1-6a1b2c3d',
      }),
    configuration: z.enum(['auto', 'source', 'host']).default('auto').meta({
      description:
        'auto: the configuration of the host where it lies outside PGDATA, else that of the source. source, host: the one of the two',
    }),
  })
  .refine(isPortAtMostOnce, {
    path: ['settings', 'port'],
    message: `must be a port from 1 to ${String(PORT_MAX)}, and cannot stand beside replica.port`,
  });

/** Ten years: beyond that it is no disposable clone, and times stay times. */
const TTL_MAX = 10 * 365 * 86_400;

export const Ttl = z.int().min(1).max(TTL_MAX);

const withDefaults = <Shape extends z.ZodObject>(schema: Shape) =>
  schema.prefault({} as z.input<Shape>);

const specShape = {
  method: z.enum(['rsync', 'reflink']).default('rsync').meta({
    description:
      'rsync: over the network, from any host. reflink: of a source on the host itself, whose blocks the clone shares until one of both changes them; it takes a filesystem that can do that (XFS, btrfs), and takes seconds whatever the size',
  }),
  transfer: withDefaults(Transfer),
  wal: withDefaults(Wal),
  replica: withDefaults(Replica),
  verification: withDefaults(Verification),
  deadline: z.iso.datetime({ offset: true }).nullable().default(null).meta({
    description: 'Time in the future at which a clone that has not ended is given up; null: never',
  }),
  ttl: Ttl.nullable().default(null).meta({
    description:
      'Seconds after its end when the files of the clone are removed, also those of one that failed, but for what a failed resync has left; null: never',
  }),
  protected: z.boolean().default(false).meta({
    description:
      'Neither DELETE nor the end of its time removes the files, until this is taken back',
  }),
  labels: z
    .record(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/), Label)
    .refine((labels) => Object.keys(labels).length <= 32, 'must be 32 labels at the most')
    .default({})
    .meta({
      description:
        'Words of your own by which clones can be listed, at most 32: names of letters, digits and . _ / -, values of up to 256 characters',
    }),
  webhook: z
    .record(z.string(), z.unknown())
    .nullable()
    .default(null)
    .meta({ description: 'Not built yet: anything but null is NOT_SUPPORTED' }),
};

const Source = z
  .strictObject({
    name: z.string().min(1).max(63).optional().meta({
      description: 'A source in the configuration of the worker on the target host',
    }),
    clone: CloneId.optional().meta({
      description:
        'In place of a name: the id of a clone on the target host that has succeeded and whose server runs, for method reflink',
    }),
  })
  .refine(
    ({ name, clone }) => (name === undefined) !== (clone === undefined),
    'must have either a name or a clone',
  );

/** What the source is called, for people. */
export function nameOfSource({ name, clone }: CloneSpec['source']): string {
  return name ?? `clone ${clone ?? ''}`;
}

export const CloneSpec = z
  .strictObject({
    source: Source,
    target: Target,
    ...specShape,
  })
  .meta({ id: 'CloneSpec', description: 'What is to be cloned, where to, and how' });

export type CloneSpec = z.output<typeof CloneSpec>;

/** What of a transfer may be changed while it runs. */
export const TransferLimits = z.strictObject({ workers: Workers, maxRate: MaxRate });

export type TransferLimits = z.output<typeof TransferLimits>;

export const CloneChange = z
  .strictObject({
    transfer: TransferLimits.partial().optional(),
    protected: z.boolean().optional().meta({
      description: 'Whether DELETE and the end of its time leave the files of the clone alone',
    }),
  })
  .meta({ id: 'CloneChange', description: 'What is to change; what is left out stays as it is' });

export type CloneChange = z.output<typeof CloneChange>;
export type CloneSpecInput = z.input<typeof CloneSpec>;

/** The same for `pgcloned run`: the source may be spelled out, and the target's host is this machine. */
export const RunSpec = z.strictObject({
  source: z.union([
    z.strictObject({ name: z.string().min(1).max(63) }),
    LocalSource,
    SourceConfiguration,
  ]),
  target: Target.extend({ host: HostName.optional() }),
  ...specShape,
});

export type RunSpec = z.output<typeof RunSpec>;

/** Whether the page checksums of the copy are checked. */
export function checksPages({
  method,
  verification,
}: {
  readonly method: CloneSpec['method'];
  readonly verification: Pick<CloneSpec['verification'], 'pages'>;
}): boolean {
  return verification.pages ?? method === 'rsync';
}

export type ReplicaRole = 'standby' | 'detached';

/** What the clone becomes, the default of its method included. */
export function roleOf({
  method,
  replica,
}: {
  readonly method: CloneSpec['method'];
  readonly replica: Pick<CloneSpec['replica'], 'role'>;
}): ReplicaRole {
  return replica.role ?? (method === 'reflink' ? 'detached' : 'standby');
}

/**
 * Refuses what the schema knows but the product does not do yet, and what the method has no use for.
 *
 * @throws {CloneError} `NOT_SUPPORTED`, naming the field and what can be used in its place.
 */
export function refuseUnsupported(spec: Omit<CloneSpec, 'source'>): void {
  const refuse = (field: string, value: string, instead: string): never => {
    throw new CloneError('NOT_SUPPORTED', `${field}: ${value} is not supported`, {
      facts: { field, value },
      hint: instead,
    });
  };
  const { waitFor, slot, settings } = spec.replica;
  if (roleOf(spec) === 'standby') {
    if (waitFor === 'writable')
      refuse('replica.waitFor', waitFor, 'Use role detached: a standby takes no writes.');
  } else {
    const instead = 'A detached clone does not stream from its source.';
    if (waitFor === 'streaming')
      refuse('replica.waitFor', waitFor, `Use writable, or role standby. ${instead}`);
    if (slot !== null)
      refuse('replica.slot', slot, `Leave it out, or use role standby. ${instead}`);
    const subscribing = settings.max_logical_replication_workers ?? 0;
    if (Number(subscribing) !== 0)
      refuse(
        'replica.settings.max_logical_replication_workers',
        String(subscribing),
        'Leave it out: the subscriptions of the source would take its changes. Set it in the clone once its subscriptions are dropped there.',
      );
  }
  if (spec.webhook !== null)
    refuse('webhook', 'a receiver', 'Leave webhook out and follow the events of the clone.');
  for (const { field, value, instead } of uselessFor(spec)) refuse(field, String(value), instead);
}

/** What is asked for although the method does nothing of the kind. */
function uselessFor({
  method,
  target,
  transfer,
}: Pick<CloneSpec, 'method' | 'target' | 'transfer'>) {
  const { maxRate, compression, transport, checksum, fallback } = transfer;
  if (method === 'rsync') {
    const instead = 'Leave it out: it is about method reflink.';
    return fallback === 'fail' ? [] : [{ field: 'transfer.fallback', value: fallback, instead }];
  }
  const instead = 'Leave it out: with method reflink nothing is sent.';
  const transfers = [
    { field: 'transfer.maxRate', value: maxRate, isDefault: maxRate === null, instead },
    {
      field: 'transfer.compression',
      value: compression,
      isDefault: compression === 'none',
      instead,
    },
    { field: 'transfer.transport', value: transport, isDefault: transport === 'rsyncd', instead },
    { field: 'transfer.checksum', value: checksum, isDefault: !checksum, instead },
    {
      field: 'target.ifExists',
      value: target.ifExists,
      isDefault: target.ifExists !== 'resync',
      instead: 'Use replace: a new clone by method reflink takes seconds.',
    },
  ];
  return transfers.filter(({ isDefault }) => !isDefault);
}

/**
 * @throws {CloneError} `NOT_SUPPORTED` if the method cannot copy from such a source.
 */
export function refuseUnfitSource(
  { method }: Pick<CloneSpec, 'method'>,
  { local }: Pick<SourceConfiguration, 'local'>,
): void {
  if (local === (method === 'reflink')) return;
  throw new CloneError(
    'NOT_SUPPORTED',
    local
      ? 'method rsync does not copy a source that is configured as local'
      : 'method reflink needs a source on the same host',
    {
      facts: { method, local },
      hint: local
        ? 'Use method reflink, or spell out how the source is reached by SQL and SSH.'
        : 'Configure the source with `local: true` and its dataDirectory, or use method rsync.',
    },
  );
}
