/** The statements and commands that mend a source, as exactly as its facts allow. */
import type { Remedy } from '@pgcloned/contract';
import { quoteForShell } from '@pgcloned/process';
import { quoteIdentifier } from './quote-identifier.ts';
import type { SourceFacts } from './source-facts.ts';

type Place = Pick<SourceFacts, 'database' | 'inRecovery'>;

/** For what is replicated: a standby takes it from its primary. */
export function onPrimary({ database, inRecovery }: Place, text: string): Remedy {
  return { kind: 'sql', on: inRecovery ? 'primary' : 'source', where: database, text };
}

export function reload({ database }: Pick<Place, 'database'>): Remedy {
  return { kind: 'sql', on: 'source', where: database, text: 'SELECT pg_reload_conf();' };
}

export function alterSystem({ database }: Pick<Place, 'database'>, assignment: string): Remedy {
  return { kind: 'sql', on: 'source', where: database, text: `ALTER SYSTEM SET ${assignment};` };
}

/**
 * Debian has a command of its own, which knows where the configuration lies. Elsewhere pg_ctl finds in the data directory
 * with which options the server was started, and so its configuration, too.
 */
export function restart({
  configFiles: { configFile },
  dataDirectory,
}: Pick<SourceFacts, 'configFiles' | 'dataDirectory'>): Remedy {
  const [, major, cluster] =
    /^\/etc\/postgresql\/(\d+)\/([^/]+)\/postgresql\.conf$/.exec(configFile) ?? [];
  const text =
    major === undefined || cluster === undefined
      ? `pg_ctl restart -D ${dataDirectory === '' ? 'DATA_DIRECTORY' : quoteForShell(dataDirectory)}`
      : `pg_ctlcluster ${major} ${quoteForShell(cluster)} restart`;
  return { kind: 'shell', on: 'source', where: 'postgres', text };
}

/**
 * Runs in the database itself: another one cannot be reindexed.
 *
 * @param collations As SQL names them: those of which the version is noted besides that of the database.
 */
export function reindex(
  database: string,
  on: Remedy['on'],
  collations: readonly string[] = [],
): Remedy[] {
  const name = quoteIdentifier(database);
  return [
    `REINDEX DATABASE ${name};`,
    `ALTER DATABASE ${name} REFRESH COLLATION VERSION;`,
    ...collations.map((collation) => `ALTER COLLATION ${collation} REFRESH VERSION;`),
  ].map((text) => ({ kind: 'sql', on, where: database, text }));
}
