/** Real parts for tests, demo and benchmarks: nothing here imitates anything. */
export { freePort } from './free-port.ts';
export {
  asPartsUser,
  partsEnvironment,
  partsUser,
  runAsPartsUser,
  runsAsRoot,
} from './parts-user.ts';
export {
  adoptServer,
  findPostgres,
  makeDirectory,
  type PostgresServer,
  type PrimaryOptions,
  startCluster,
  startPrimary,
} from './postgres-server.ts';
export { descendantsOf, type ListedProcess, listProcesses } from './process-list.ts';
export { type PrivateRedis, startRedis } from './redis.ts';
export { type ScratchDirectory, scratchDirectory } from './scratch-directory.ts';
export { type SshdOptions, type SshServer, startSshd } from './sshd.ts';
