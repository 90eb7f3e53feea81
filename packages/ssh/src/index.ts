/** SSH connections with strict host keys, and commands and TCP connections over them. */
export { type BulkClient, type BulkConnection, openBulkClient } from './bulk-client.ts';
export { connectSsh, type SshConnection, type SshTerms } from './connect-ssh.ts';
export type { ForwardTarget } from './forward.ts';
export type { SshTarget } from './ssh-target.ts';
