/** Real parts for tests, demo and benchmarks: nothing here imitates anything. */
export { type CommitProbe, startCommitProbe } from './commit-probe.ts';
export {
  checkChecksums,
  compareTables,
  findDamage,
  installAmcheck,
  waitForReplay,
} from './comparison.ts';
export { mountFilesystem, type TestFilesystem } from './filesystem.ts';
export { freePort } from './free-port.ts';
export { type HaltedClone, haltAt, killVictim, VICTIMS } from './halted-clone.ts';
export { hidePostmaster } from './hidden-postmaster.ts';
export {
  configuredPostgresBin,
  findPostgres,
  installedMajors,
  POSTGRES_MAJORS,
} from './installed-postgres.ts';
export { type LeftBehindOptions, leftBehind } from './left-behind.ts';
export { type OtherHost, otherHost } from './other-host.ts';
export {
  asPartsUser,
  partsEnvironment,
  partsUser,
  runAsPartsUser,
  runsAsRoot,
  writePartsFile,
} from './parts-user.ts';
export {
  type Answer,
  PGCLONED,
  type Pgcloned,
  type PgclonedOptions,
  startPgcloned,
} from './pgcloned.ts';
export {
  adoptServer,
  makeDirectory,
  type PostgresServer,
  type PrimaryOptions,
  startCluster,
  startPrimary,
  stopServer,
} from './postgres-server.ts';
export { descendantsOf, type ListedProcess, listProcesses } from './process-list.ts';
export { type PrivateRedis, startRedis } from './redis.ts';
export { createScattered, writeScattered } from './scattered-writes.ts';
export { type ScratchDirectory, scratchDirectory } from './scratch-directory.ts';
export { findSecrets, type SecretSearch, watchForSecrets } from './secrets.ts';
export { type ServerProcess, startServerProcess } from './server-process.ts';
export { type Source, startSource } from './source.ts';
export { type SshdOptions, type SshServer, startSshd } from './sshd.ts';
export {
  type StandbyOptions,
  type StandbySource,
  startStandby,
  startStandbyOf,
} from './standby.ts';
export { startWriteLoad, type WriteLoad, type WriteLoadOptions } from './write-load.ts';
