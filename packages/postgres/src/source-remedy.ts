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

/** Debian has a command of its own, which knows where the configuration lies. */
export function restart({ configFiles }: Pick<SourceFacts, 'configFiles'>): Remedy {
  const { configFile } = configFiles;
  const [, major, cluster] =
    /^\/etc\/postgresql\/(\d+)\/([^/]+)\/postgresql\.conf$/.exec(configFile) ?? [];
  const directory = configFile.slice(0, Math.max(0, configFile.lastIndexOf('/')));
  const text =
    major === undefined || cluster === undefined
      ? `pg_ctl restart -D ${directory === '' ? 'DATA_DIRECTORY' : quoteForShell(directory)}`
      : `pg_ctlcluster ${major} ${quoteForShell(cluster)} restart`;
  return { kind: 'shell', on: 'source', where: 'postgres', text };
}

/** Runs in the database itself: another one cannot be reindexed. */
export function reindex(database: string, on: Remedy['on']): readonly Remedy[] {
  const name = quoteIdentifier(database);
  return [
    { kind: 'sql', on, where: database, text: `REINDEX DATABASE ${name};` },
    { kind: 'sql', on, where: database, text: `ALTER DATABASE ${name} REFRESH COLLATION VERSION;` },
  ];
}
