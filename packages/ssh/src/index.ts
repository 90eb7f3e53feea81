/** SSH connections with strict host keys, and commands over them. */
export { connectSsh, type SshConnection } from './connect-ssh.ts';
export type { SshTarget } from './ssh-target.ts';
