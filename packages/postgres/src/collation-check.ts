/**
 * Whether text has one order here and on the source (R9.1): indexes on text are copied as they are, and another order
 * makes them wrong without a word.
 *
 * The C library tells its version; ICU's is known only to what is linked with it, so it is named, and compared once a server
 * runs here (`verification.boot`).
 */
import type { Notice } from '@pgcloned/contract';
import type { CollationState, SourceFacts } from './source-facts.ts';
import { reindex } from './source-remedy.ts';

const LIBC = 'c';
const ICU = 'i';

/** @param libcVersion Of this host, such as `2.36`; null: not known. */
export function checkCollations(
  { databases, collations, database, inRecovery }: SourceFacts,
  libcVersion: string | null,
): readonly Notice[] {
  const all = [...databases, ...collations];
  const ofDatabase = (one: CollationState) => (databases.includes(one) ? one.name : database);
  const namesOf = (some: readonly CollationState[]) => [...new Set(some.map(ofDatabase))];

  const isStale = ({ recorded, actual }: CollationState) =>
    recorded !== null && actual !== null && recorded !== actual;
  const stale = databases
    .map(({ name, ...own }) => ({
      name,
      ofDatabase: [{ name, ...own }].filter(isStale),
      ofCollations: name === database ? collations.filter(isStale) : [],
    }))
    .filter(({ ofDatabase, ofCollations }) => ofDatabase.length + ofCollations.length > 0);
  const differing = all.filter(
    ({ provider, actual }) =>
      provider === LIBC && actual !== null && libcVersion !== null && actual !== libcVersion,
  );
  const unknown = all.filter(
    ({ provider, actual }) => actual !== null && (provider === ICU || libcVersion === null),
  );
  return [
    ...stale.map(({ name, ofDatabase, ofCollations }): Notice => {
      const [{ recorded = null, actual = null } = {}] = [...ofDatabase, ...ofCollations];
      const names = ofCollations.map((one) => one.name);
      return {
        code: 'COLLATION_STALE',
        message: `Text in database ${name} was put in order by version ${recorded ?? ''} of ${ofDatabase.length > 0 ? 'its collation' : names.join(', ')}, and the source has ${actual ?? ''} now: its indexes may be wrong there already.`,
        facts: { database: name, collations: names.join(', '), recorded, actual },
        hint: 'A clone copies the indexes as they are. Rebuild them on the source before.',
        remedies: reindex(name, inRecovery ? 'primary' : 'source', names),
      };
    }),
    ...(differing.length === 0
      ? []
      : [
          {
            code: 'COLLATION_DIFFERS' as const,
            message: `The C library orders text by version ${differing[0]?.actual ?? ''} on the source and ${libcVersion ?? ''} here: on the clone indexes on text are wrong, in ${namesOf(differing).join(', ')}.`,
            facts: { source: differing[0]?.actual ?? null, host: libcVersion },
            hint: 'Clone to a host with the same release of the distribution. A clone that was promoted can be mended by what is printed; a standby cannot.',
            remedies: namesOf(differing).flatMap((name) => reindex(name, 'host')),
          },
        ]),
    ...(unknown.length === 0
      ? []
      : [
          {
            code: 'NOT_CHECKED' as const,
            message: `Whether text is ordered here as on the source is not checked for ${[...new Set(unknown.map((one) => `${one.name} (${one.provider === ICU ? 'ICU' : 'C library'} ${one.actual ?? ''})`))].join(', ')}.`,
            hint: 'A clone with verification.boot compares them here. On a running one pg_collation_actual_version() tells.',
          },
        ]),
  ];
}
