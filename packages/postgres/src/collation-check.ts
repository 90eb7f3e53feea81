/**
 * Whether text has one order here and on the source (R9.1): indexes on text are copied as they are, and another order
 * makes them wrong without a word.
 *
 * The C library tells its version; ICU's is known only to what is linked with it, so it is named and not compared.
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

  const stale = databases.filter(
    ({ recorded, actual }) => recorded !== null && actual !== null && recorded !== actual,
  );
  const differing = all.filter(
    ({ provider, actual }) =>
      provider === LIBC && actual !== null && libcVersion !== null && actual !== libcVersion,
  );
  const unknown = all.filter(
    ({ provider, actual }) => actual !== null && (provider === ICU || libcVersion === null),
  );
  return [
    ...stale.map(
      ({ name, recorded, actual }): Notice => ({
        code: 'COLLATION_STALE',
        message: `Text in database ${name} was put in order by version ${recorded ?? ''} of its collation, and the source has ${actual ?? ''} now: its indexes may be wrong there already.`,
        facts: { database: name, recorded, actual },
        hint: 'A clone copies the indexes as they are. Rebuild them on the source before.',
        remedies: [...reindex(name, inRecovery ? 'primary' : 'source')],
      }),
    ),
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
            hint: 'On the clone, ALTER DATABASE and pg_collation_actual_version() tell of it.',
          },
        ]),
  ];
}
