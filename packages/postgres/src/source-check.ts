/**
 * Judges whether a cluster can be cloned, from its facts alone.
 *
 * Every finding names the command that mends it, and all are found at once, so that nobody has to come back once per
 * missing grant. What only trying can tell (pg_hba.conf) is asked by `probeReplication`.
 */
import { CloneError, changeRequest, formatBytes, type Notice } from '@pgcloned/contract';
import { fullPageWritesOff } from './backup.ts';
import { quoteIdentifier } from './quote-identifier.ts';
import type { SourceFacts } from './source-facts.ts';
import { alterSystem, onPrimary, reload, restart } from './source-remedy.ts';

export interface SourceFindings {
  /** Worst first; empty when the source is fit. */
  readonly errors: readonly CloneError[];
  readonly warnings: readonly Notice[];
}

export interface Wanted {
  readonly slot: boolean;
  readonly replicaSlot: boolean;
  /** How many stream from it (R4.16): the copy, the standby, both or none. */
  readonly walSenders: 0 | 1 | 2;
  /** By which name the source will know the standby (R9.5); null: there will be none. */
  readonly standbyName: string | null;
}

/**
 * @param want.slot A slot shall pin WAL during the clone. None to be had is a warning, since there is another way.
 * @param want.replicaSlot The standby shall get a permanent slot of its own.
 */
export function checkSource(facts: SourceFacts, want: Wanted): SourceFindings {
  return {
    errors: [...checkRights(facts), ...checkSettings(facts, want), ...checkLayout(facts)],
    warnings: warningsOf(facts, want),
  };
}

function checkRights({ rights, user, database, inRecovery }: SourceFacts): readonly CloneError[] {
  const role = quoteIdentifier(user);
  // A standby takes no grants: they come from there.
  const where = inRecovery ? 'the primary of the source' : 'the source';
  const grants: readonly { readonly has: boolean; readonly what: string; readonly sql: string }[] =
    [
      {
        has: rights.replication,
        what: 'replicate',
        sql: `ALTER ROLE ${role} REPLICATION;`,
      },
      {
        has: rights.backupStart,
        what: `call pg_backup_start in database ${database}`,
        sql: `GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO ${role};`,
      },
      {
        has: rights.backupStop,
        what: `call pg_backup_stop in database ${database}`,
        sql: `GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO ${role};`,
      },
      {
        has: rights.monitor,
        what: 'see the data directory and the state of replication',
        sql: `GRANT pg_monitor TO ${role};`,
      },
    ];
  return grants
    .filter(({ has }) => !has)
    .map(
      ({ what, sql }) =>
        new CloneError('SOURCE_RIGHTS_MISSING', `${user} may not ${what}`, {
          facts: { user, database, grant: sql },
          hint: `Run as superuser in database ${database} of ${where}: ${sql}`,
          remedies: [onPrimary({ database, inRecovery }, sql)],
        }),
    );
}

function checkSettings(facts: SourceFacts, want: Wanted): readonly CloneError[] {
  const errors: CloneError[] = [];
  if (facts.walLevel === 'minimal') {
    errors.push(
      new CloneError('SOURCE_SETTINGS_UNSUITABLE', 'wal_level of the source is minimal', {
        facts: { setting: 'wal_level', value: facts.walLevel },
        hint: "Run ALTER SYSTEM SET wal_level = 'replica'; on the source and restart it.",
        remedies: [...raiseWalLevel(facts), restart(facts)],
      }),
    );
  }
  if (facts.inRecovery && !facts.fullPageWrites) errors.push(fullPageWritesOff());
  if (want.walSenders > 0 && facts.walSendersFree < 1) {
    const value = facts.settings.max_wal_senders ?? '';
    const needed = enoughSenders(facts, want);
    errors.push(
      new CloneError('SOURCE_NO_WAL_SENDER', 'the source has no free WAL sender', {
        facts: { setting: 'max_wal_senders', value },
        hint: `Run ALTER SYSTEM SET ${needed}; on the source and restart it, or wait until a standby or backup has gone.`,
        remedies: [
          // Without it the server would not start with WAL senders.
          ...(facts.walLevel === 'minimal' ? raiseWalLevel(facts) : []),
          alterSystem(facts, needed),
          restart(facts),
        ],
      }),
    );
  }
  const slotsWanted = (want.slot ? 1 : 0) + (want.replicaSlot ? 1 : 0);
  if (want.replicaSlot && facts.slotsFree < slotsWanted) {
    const value = facts.settings.max_replication_slots ?? '';
    const needed = enoughSlots(facts, slotsWanted);
    errors.push(
      new CloneError(
        'SOURCE_SETTINGS_UNSUITABLE',
        'the source has too few replication slots for the standby',
        {
          facts: {
            setting: 'max_replication_slots',
            value,
            free: facts.slotsFree,
            wanted: slotsWanted,
          },
          hint: `Run ALTER SYSTEM SET ${needed}; on the source and restart it, or leave replica.slot out.`,
          remedies: [alterSystem(facts, needed), restart(facts)],
        },
      ),
    );
  }
  return [...errors, ...checkConnectionLimits(facts, want)];
}

/** Besides the session that asks: the pin has one of its own, and a stream of WAL at a time, which is in no database. */
function checkConnectionLimits(facts: SourceFacts, want: Wanted): readonly CloneError[] {
  const { user, database, connectionLimits } = facts;
  const sessions = want.slot ? 1 : 0;
  const limits = [
    {
      what: `role ${user}`,
      of: `ROLE ${quoteIdentifier(user)}`,
      needed: sessions + Math.min(1, want.walSenders),
    },
    { what: `database ${database}`, of: `DATABASE ${quoteIdentifier(database)}`, needed: sessions },
  ];
  return [connectionLimits.role, connectionLimits.database].flatMap((found, index) => {
    const limit = limits[index];
    if (found === null || limit === undefined || found.free >= limit.needed) return [];
    // The standby streams as the same role.
    const sql = `ALTER ${limit.of} CONNECTION LIMIT ${String(found.limit + limit.needed - found.free + 1)};`;
    const remedy = onPrimary(facts, sql);
    return new CloneError(
      'SOURCE_SETTINGS_UNSUITABLE',
      `the connection limit of ${limit.what} leaves too few for a clone`,
      {
        facts: { setting: 'CONNECTION LIMIT', ...found, needed: limit.needed },
        hint: `Run on ${remedy.on === 'primary' ? 'the primary of the source' : 'the source'}: ${sql}`,
        remedies: [remedy],
      },
    );
  });
}

function checkLayout({ tablespaces, dataDirectory }: SourceFacts): readonly CloneError[] {
  const unreadable = [...tablespaces.map(({ location }) => location), dataDirectory].filter(
    (path) => path.includes('\ufffd'),
  );
  const inPlace = tablespaces.filter(({ location }) => !location.startsWith('/'));
  return [
    ...unreadable.map(
      (path) =>
        new CloneError('SOURCE_LAYOUT_UNSUPPORTED', 'a path of the source is not UTF-8', {
          facts: { path },
          hint: 'Move the tablespace to a directory whose path is UTF-8.',
        }),
    ),
    ...inPlace.map(
      ({ name }) =>
        new CloneError('SOURCE_LAYOUT_UNSUPPORTED', `tablespace ${name} lies in pg_tblspc itself`, {
          facts: { tablespace: name },
          hint: `Drop the tablespace ${name}: in-place tablespaces are made for developers' tests only.`,
        }),
    ),
  ];
}

function warningsOf(facts: SourceFacts, want: Wanted): readonly Notice[] {
  return [
    ...(want.slot && facts.slotsFree < 1
      ? [
          {
            code: 'NO_SLOT_FREE' as const,
            message:
              'The source has no free replication slot (max_replication_slots), so WAL is not pinned: the clone fails if the source removes WAL too early.',
            remedies: [alterSystem(facts, enoughSlots(facts, 1)), restart(facts)],
          },
        ]
      : []),
    ...(want.walSenders === 2 && facts.walSendersFree === 1
      ? [
          {
            code: 'FEW_WAL_SENDERS' as const,
            message:
              'The source has a single free WAL sender (max_wal_senders): the copy takes it, and the standby can stream only after.',
            remedies: [alterSystem(facts, enoughSenders(facts, want)), restart(facts)],
          },
        ]
      : []),
    ...(want.standbyName === null ? [] : checkSynchronousNames(facts, want.standbyName)),
    ...checkArchiver(facts),
    ...checkSlotLimits(facts, want),
  ];
}

const raiseWalLevel = (facts: SourceFacts) => [alterSystem(facts, "wal_level = 'replica'")];

function enoughSenders(
  { settings, walSendersFree }: SourceFacts,
  { walSenders }: Pick<Wanted, 'walSenders'>,
): string {
  const missing = walSenders - Math.max(0, walSendersFree);
  return `max_wal_senders = ${String(Number(settings.max_wal_senders) + missing)}`;
}

function enoughSlots({ settings, slotsFree }: SourceFacts, wanted: number): string {
  const missing = wanted - Math.max(0, slotsFree);
  return `max_replication_slots = ${String(Number(settings.max_replication_slots) + missing)}`;
}

/** R4.8, R9.5: a standby that is admitted by accident is one that commits wait for. */
function checkSynchronousNames(facts: SourceFacts, standbyName: string): readonly Notice[] {
  const { synchronousStandbyNames: value, synchronousStandbys, inRecovery } = facts;
  // Replication from a standby is never synchronous.
  if (inRecovery) return [];
  const names = namesIn(value);
  if (names.includes('*')) {
    // All in quotes: FIRST and ANY have a meaning there that they have not in SQL.
    const present = synchronousStandbys.map((name) => `"${name.replaceAll('"', '""')}"`).join(', ');
    const narrowed =
      present === ''
        ? ''
        : value.replace(NAME, (name) => (namesIn(name).includes('*') ? present : name));
    return [
      {
        code: 'STANDBY_SYNCHRONOUS',
        message:
          'synchronous_standby_names of the source admits any standby (*), so the clone may become a synchronous one that commits wait for.',
        facts: { setting: 'synchronous_standby_names', value },
        hint: 'Name the standbys that are meant; what is printed names those that are synchronous now.',
        remedies: [
          alterSystem(facts, `synchronous_standby_names = '${narrowed.replaceAll("'", "''")}'`),
          reload(facts),
        ],
      },
    ];
  }
  if (!names.some((name) => name.toLowerCase() === standbyName.toLowerCase())) return [];
  return [
    {
      code: 'STANDBY_SYNCHRONOUS',
      message: `synchronous_standby_names of the source names ${standbyName}, as the clone would be called: it would become a synchronous standby that commits wait for.`,
      facts: { setting: 'synchronous_standby_names', value, standbyName },
      hint: 'Choose another replica.clusterName, unless that is meant.',
      remedies: [changeRequest({ replica: { clusterName: `${standbyName}-clone`.slice(-63) } })],
    },
  ];
}

const NAME = /"((?:[^"]|"")*)"|([^\s,()"]+)/g;

/** The names in `FIRST 2 (a, "b c", *)` and its other forms, without their quotes. */
function namesIn(value: string): readonly string[] {
  const list = /^\s*(?:(?:FIRST|ANY)\s+)?\d+\s*\((.*)\)\s*$/is.exec(value)?.[1] ?? value;
  return [...list.matchAll(NAME)].map(
    ([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain ?? '',
  );
}

/** No clone waits for the archive (R3.3), but its source keeps all WAL that the archive does not take. */
function checkArchiver({ archiver, archiveMode }: SourceFacts): readonly Notice[] {
  if (archiveMode === 'off' || !archiver.failing) return [];
  return [
    {
      code: 'ARCHIVER_FAILING',
      message: `The archive of the source takes no WAL: ${archiver.wal} failed last. What it does not take stays in pg_wal, and fills that disk in the end.`,
      facts: { wal: archiver.wal, failedAt: archiver.failedAt },
      hint: 'Read in the log of the source why archive_command or archive_library fails; it is tried again by itself.',
    },
  ];
}

/** What a pin must be able to hold: what is written while the standby starts, of which the size tells most. */
const KEEP_SEGMENTS_MIN = 8;
const KEEP_SHARE = 0.1;

/** Ours is advanced every few seconds (R5.5); one of a standby that is not started yet is not. */
const PIN_TIMEOUT_MS_MIN = 60_000;
const REPLICA_SLOT_TIMEOUT_MS_MIN = 3_600_000;

function checkSlotLimits(facts: SourceFacts, want: Wanted): readonly Notice[] {
  const notices: Notice[] = [];
  const { maxSlotWalKeepBytes: keepBytes, idleSlotTimeoutMs, walSegmentBytes } = facts;
  const bytes = facts.tablespaces.reduce(
    (sum, tablespace) => sum + (tablespace.bytes ?? 0),
    facts.databaseBytes ?? 0,
  );
  const neededBytes = Math.max(KEEP_SEGMENTS_MIN * walSegmentBytes, KEEP_SHARE * bytes);
  if ((want.slot || want.replicaSlot) && keepBytes !== null && keepBytes < neededBytes) {
    const megabytes = String(Math.ceil(neededBytes / 2 ** 20));
    notices.push({
      code: 'WAL_LIMIT_LOW',
      message: `max_slot_wal_keep_size of the source is ${formatBytes(keepBytes)}, little for ${formatBytes(bytes)}: a slot that holds more than that is lost, and WAL with it.`,
      facts: { setting: 'max_slot_wal_keep_size', keepBytes, neededBytes },
      remedies: [alterSystem(facts, `max_slot_wal_keep_size = '${megabytes}MB'`), reload(facts)],
    });
  }
  const timeoutMin = want.replicaSlot
    ? REPLICA_SLOT_TIMEOUT_MS_MIN
    : want.slot
      ? PIN_TIMEOUT_MS_MIN
      : 0;
  if (idleSlotTimeoutMs !== null && idleSlotTimeoutMs < timeoutMin) {
    notices.push({
      code: 'SLOT_TIMEOUT_SHORT',
      message: `idle_replication_slot_timeout of the source is ${String(idleSlotTimeoutMs / 1000)} s: a slot that nobody uses for so long is lost, and WAL with it.`,
      facts: { setting: 'idle_replication_slot_timeout', idleSlotTimeoutMs },
      remedies: [alterSystem(facts, "idle_replication_slot_timeout = '1h'"), reload(facts)],
    });
  }
  return notices;
}
