/** What crosses a process border: data and schemas, no I/O. */
export { CloneId } from './clone-id.ts';
export {
  Clone,
  CloneResult,
  ERROR_CODES,
  expiring,
  expiryAfter,
  hasFiles,
  type Instance,
  InstanceWish,
  isPublished,
  Leftover,
  newClone,
  noProgress,
  Progress,
  RecordError,
  recordError,
  specOfReset,
  type Verdict,
  withTransfer,
} from './clone-record.ts';
export {
  CloneChange,
  CloneSpec,
  type CloneSpecInput,
  COMPRESSIONS,
  type Compression,
  checksPages,
  nameOfSource,
  type ReplicaRole,
  RunSpec,
  refuseUnfitSource,
  refuseUnsupported,
  roleOf,
  TransferLimits,
  Ttl,
  WORKERS_MAX,
} from './clone-spec.ts';
export {
  CLONE_EVENTS,
  type CloneEvent,
  type CloneState,
  hasEnded,
  nextState,
  STATES,
} from './clone-state.ts';
export { Configuration, type Role, type StartMethod, Token } from './configuration.ts';
export {
  CATALOGUE,
  CloneError,
  type CloneErrorOptions,
  type ErrorCode,
  type ErrorFacts,
  EXIT_STATUS,
  toCloneError,
} from './errors.ts';
export { LOG_LEVELS, type LogLevel, LogLine, type StreamEvent } from './events.ts';
export { NOTICES, type Notice } from './finding.ts';
export { Host, HostFacts } from './host-record.ts';
export { PHASE_STATES, PHASES, type PhaseName, type PhaseState } from './phases.ts';
export {
  bySeverity,
  Finding,
  findingOfError,
  findingOfNotice,
  PreflightAnswer,
  PreflightQuestion,
  PreflightReport,
} from './preflight-report.ts';
export { Problem } from './problem.ts';
export { changeRequest, Remedy } from './remedy.ts';
export { refuseForbiddenSettings } from './settings.ts';
export {
  formatServer,
  LocalSource,
  localSource,
  portsOf,
  type ServerAddress,
  SourceConfiguration,
  serversOf,
} from './source.ts';
export { formatBytes, parseBytes, parseSeconds } from './units.ts';
export { CONTRACT_VERSION, VERSION } from './version.ts';
