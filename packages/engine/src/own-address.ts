/** Whether an IP address belongs to this host. */
import { networkInterfaces } from 'node:os';

export function isOwnAddress(address: string): boolean {
  return Object.values(networkInterfaces())
    .flat()
    .some((one) => one?.address === address);
}
