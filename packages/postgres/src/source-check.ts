/**
 * Judges whether a cluster can be cloned, from its facts alone.
 *
 * Every finding names the command that mends it, and all are found at once, so that nobody has to come back once per
 * missing grant. What only trying can tell (pg_hba.conf) is asked by `probeReplication`.
 */
import { CloneError, type Notice } from '@pgcloned/contract';
import { fullPageWritesOff } from './backup.ts';
import { quoteIdentifier } from './quote-identifier.ts';
import type { SourceFacts } from './source-facts.ts';

export interface SourceFindings {
  /** Worst first; empty when the source is fit. */
  readonly errors: readonly CloneError[];
  readonly warnings: readonly Notice[];
}

/**
 * @param want.slot A slot shall pin WAL during the clone. None to be had is a warning, since there is another way.
 * @param want.replicaSlot The standby shall get a permanent slot of its own.
 */
export function checkSource(
  facts: SourceFacts,
  want: { readonly slot: boolean; readonly replicaSlot: boolean },
): SourceFindings {
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
        }),
    );
}

function checkSettings(
  facts: SourceFacts,
  want: { readonly slot: boolean; readonly replicaSlot: boolean },
): readonly CloneError[] {
  const errors: CloneError[] = [];
  if (facts.walLevel === 'minimal') {
    errors.push(
      new CloneError('SOURCE_SETTINGS_UNSUITABLE', 'wal_level of the source is minimal', {
        facts: { setting: 'wal_level', value: facts.walLevel },
        hint: "Run ALTER SYSTEM SET wal_level = 'replica'; on the source and restart it.",
      }),
    );
  }
  if (facts.inRecovery && !facts.fullPageWrites) errors.push(fullPageWritesOff());
  if (facts.walSendersFree < 1) {
    const value = facts.settings.max_wal_senders ?? '';
    errors.push(
      new CloneError('SOURCE_NO_WAL_SENDER', 'the source has no free WAL sender', {
        facts: { setting: 'max_wal_senders', value },
        hint: `Run ALTER SYSTEM SET max_wal_senders = ${String(Number(value) + 2)}; on the source and restart it, or wait until a standby or backup has gone.`,
      }),
    );
  }
  const slotsWanted = (want.slot ? 1 : 0) + (want.replicaSlot ? 1 : 0);
  if (want.replicaSlot && facts.slotsFree < slotsWanted) {
    const value = facts.settings.max_replication_slots ?? '';
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
          hint: `Run ALTER SYSTEM SET max_replication_slots = ${String(Number(value) + slotsWanted)}; on the source and restart it, or leave replica.slot out.`,
        },
      ),
    );
  }
  return errors;
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

function warningsOf(
  facts: SourceFacts,
  want: { readonly slot: boolean; readonly replicaSlot: boolean },
): readonly Notice[] {
  const warnings: Notice[] = [];
  if (want.slot && facts.slotsFree < 1) {
    warnings.push({
      code: 'NO_SLOT_FREE',
      message:
        'The source has no free replication slot (max_replication_slots), so WAL is not pinned: the clone fails if the source removes WAL too early.',
    });
  }
  if (facts.walSendersFree === 1) {
    warnings.push({
      code: 'FEW_WAL_SENDERS',
      message:
        'The source has a single free WAL sender (max_wal_senders): the copy takes it, and the standby can stream only after.',
    });
  }
  // Replication from a standby is never synchronous.
  if (!facts.inRecovery && facts.synchronousStandbyNames.includes('*')) {
    warnings.push({
      code: 'STANDBY_SYNCHRONOUS',
      message:
        'synchronous_standby_names of the source admits any standby (*), so the clone may become a synchronous one that commits wait for.',
    });
  }
  return warnings;
}
