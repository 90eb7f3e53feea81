/** SSH connections with strict host keys, and commands and TCP connections over them. */
export { connectSsh, type SshConnection } from './connect-ssh.ts';
export type { ForwardTarget } from './forward.ts';
export type { SshTarget } from './ssh-target.ts';
