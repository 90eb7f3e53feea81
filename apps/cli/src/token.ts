/** Bearer tokens of the API. Only the hash of one is ever configured. */
import { createHash, randomBytes } from 'node:crypto';

/** As many bits as the hash has. */
const TOKEN_BYTES = 32;

/** The prefix lets scanners for leaked secrets recognise one. */
export function makeToken(): string {
  return `pgcloned_${randomBytes(TOKEN_BYTES).toString('base64url')}`;
}

export function hashOfToken(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}
