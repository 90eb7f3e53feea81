/** The file channel to the source: a remote script, a daemon on a lease, and transfers. */
export type { ByteName } from './byte-name.ts';
export { type DaemonRequest, type RsyncDaemon, startDaemon } from './daemon.ts';
export type { TransferEndpoint } from './endpoint.ts';
export { type HostProbe, probeHost } from './host-probe.ts';
export { listFiles, type SourceEntry } from './list-files.ts';
export { localCompressions, localRsyncVersion } from './local-rsync.ts';
export { packagesOf } from './packages.ts';
export { readRemoteFile, readRemotePages, remoteExists } from './remote-file.ts';
export { rsyncVersionWarning } from './rsync-version.ts';
export { sweepHost } from './sweep-host.ts';
export { type TransferOutcome, type TransferRequest, transfer } from './transfer.ts';
export { tryEndpoint } from './try-endpoint.ts';
