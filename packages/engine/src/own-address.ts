/** Whether an IP address belongs to this host. */
import { networkInterfaces } from 'node:os';

/** All of 127.0.0.0/8 is ours, although only 127.0.0.1 is listed: Debian gives a host's own name 127.0.1.1. */
const LOOPBACK = /^(?:::ffff:)?127\./;

export function isOwnAddress(address: string): boolean {
  return (
    LOOPBACK.test(address) ||
    Object.values(networkInterfaces())
      .flat()
      .some((one) => one?.address === address)
  );
}
