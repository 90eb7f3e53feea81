/** PostgreSQL as a clone meets it: sessions, backup, WAL, control file, tablespaces, configuration, servers. */
export {
  type BackupStart,
  type BackupStop,
  readWalEnd,
  startBackup,
  stopBackup,
} from './backup.ts';
export {
  formatManifest,
  type ManifestContent,
  type ManifestFile,
  OUTSIDE_MANIFEST,
} from './backup-manifest.ts';
export { findBinDirectory } from './binaries.ts';
export { checkCollations } from './collation-check.ts';
export {
  appendSettings,
  canUseIoUring,
  effectiveSettings,
  primaryConninfo,
  quoteSetting,
  withoutSettings,
} from './configuration.ts';
export {
  type ConnectionSettings,
  libpqEnvironment,
  resolveConnection,
} from './connection-settings.ts';
export {
  CONTROL_FILE_BYTES,
  CONTROL_STATE,
  type ControlFile,
  parseControlFile,
  readControlFile,
  readLocalControlFile,
} from './control-file.ts';
export { formatLsn, parseLsn, walBytesBetween } from './lsn.ts';
export {
  type CheckedFile,
  type FileToCheck,
  openPageChecker,
  type PageChecker,
  type Suspect,
} from './page-check.ts';
export { canJudgePages, judgePage } from './page-checksum.ts';
export { formatPassfileLine } from './passfile.ts';
export type { WalReceiverOptions } from './pg-receivewal.ts';
export { isServerRunning, type PostmasterPid, parsePostmasterPid } from './postmaster-pid.ts';
export { type PrivateServer, startPrivateServer } from './private-server.ts';
export { isInRecovery, promoted } from './promotion.ts';
export {
  type ReplicaStatus,
  replicaStatus,
  type StandbyStatus,
  standbyStatus,
} from './replica-status.ts';
export { probeReplication, type ReplicationIdentity } from './replication-probe.ts';
export { parseSegmentHeader, SEGMENT_HEADER_BYTES } from './segment-header.ts';
export {
  checkStartMethod,
  logTail,
  type StartServerOptions,
  startServer,
  stopServer,
} from './server.ts';
export { readServerState, type ServerState } from './server-state.ts';
export { openSession, type Session } from './session.ts';
export { checkSource, type SourceFindings } from './source-check.ts';
export {
  readSourceFacts,
  readTablespaces,
  type SourceFacts,
  type SourceRights,
  STANDBY_MINIMUM_SETTINGS,
  type Tablespace,
} from './source-facts.ts';
export {
  formatTablespaceMap,
  parseTablespaceMap,
  type TablespaceMapEntry,
} from './tablespace-map.ts';
export {
  requireSupportedVersion,
  SUPPORTED_MAJORS,
  versionName,
  walSubdirectories,
} from './version.ts';
export { pinWal, type WalPin } from './wal-pin.ts';
export { proveWal } from './wal-proof.ts';
export {
  keepUnfinishedSegment,
  startWalReceiver,
  type WalReceiver,
} from './wal-receiver.ts';
export { segmentName, segmentStart, segmentStartOfName, segmentsBetween } from './wal-segment.ts';
