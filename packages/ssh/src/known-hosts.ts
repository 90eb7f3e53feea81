/**
 * Host keys, looked up and judged as OpenSSH does with StrictHostKeyChecking.
 *
 * `ssh-keygen -F` does the look-up, so that hashed names, patterns and negations mean what they mean to ssh. Host
 * certificates are not supported: a host that is only known by a certificate authority counts as unknown.
 */
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { CloneError } from '@pgcloned/contract';
import { codeOf, quoteForShell, runProcess } from '@pgcloned/process';
import { factsOf, type SshTarget } from './ssh-target.ts';

const SSH_PORT = 22;
const STATUS_NOT_FOUND = 1;

export interface KnownHostKeys {
  /** Under the name that belongs to the port: `host`, or `[host]:port`. */
  readonly exact: readonly HostKey[];
  /** Under the bare name, for a port that has no entry of its own. */
  readonly withoutPort: readonly HostKey[];
  readonly revoked: readonly HostKey[];
}

interface HostKey {
  readonly type: string;
  readonly key: Buffer;
}

/** @throws {CloneError} `SSH_HOST_KEY_UNKNOWN` if one of the files exists and cannot be read. */
export async function knownHostKeys(
  target: SshTarget,
  { signal }: { readonly signal: AbortSignal },
): Promise<KnownHostKeys> {
  const exact: MarkedKey[] = [];
  const withoutPort: MarkedKey[] = [];
  for (const file of target.knownHostsFiles) {
    if (!(await isReadable(file, target))) continue;
    exact.push(...(await lookUp(nameOf(target), file, signal)));
    if (target.port === SSH_PORT) continue;
    withoutPort.push(...(await lookUp(target.host.toLowerCase(), file, signal)));
  }
  const plain = ({ marker }: MarkedKey) => marker === null;
  return {
    exact: exact.filter(plain),
    withoutPort: withoutPort.filter(plain),
    revoked: [...exact, ...withoutPort].filter(({ marker }) => marker === '@revoked'),
  };
}

/** Types of the known keys, which a server should be asked for first: it may have keys that we do not know. */
export function typesOf({ exact, withoutPort }: KnownHostKeys): readonly string[] {
  return [...new Set([...exact, ...withoutPort].map(({ type }) => type))];
}

/** @returns Null if `offered` is a key that we know; else `SSH_HOST_KEY_UNKNOWN` or `SSH_HOST_KEY_MISMATCH`. */
export function judgeHostKey(
  offered: Buffer,
  known: KnownHostKeys,
  target: SshTarget,
): CloneError | null {
  const isOffered = ({ key }: HostKey) => key.equals(offered);
  const facts = {
    ...factsOf(target),
    keyType: typeOf(offered),
    fingerprint: `SHA256:${createHash('sha256').update(offered).digest('base64').replace(/=+$/, '')}`,
  };
  if (known.revoked.some(isOffered)) {
    return new CloneError('SSH_HOST_KEY_MISMATCH', `the host key of ${target.host} is revoked`, {
      facts,
      hint: 'Give the host a new key; whoever holds this one may read and change what is sent.',
    });
  }
  if ([...known.exact, ...known.withoutPort].some(isOffered)) return null;
  const [file] = target.knownHostsFiles;
  if (known.exact.length > 0) {
    return new CloneError(
      'SSH_HOST_KEY_MISMATCH',
      `the host key of ${target.host} is not the known one`,
      {
        facts,
        hint: `Somebody may be in between. If the host really has a new key, remove the old one with \`ssh-keygen -R ${quoteForShell(nameOf(target))} -f ${quoteForShell(file ?? '')}\` and add the new one with \`${scanCommand(target, facts.keyType)}\`, once its fingerprint agrees with what \`ssh-keygen -lf\` says on the host.`,
      },
    );
  }
  return new CloneError('SSH_HOST_KEY_UNKNOWN', `the host key of ${target.host} is not known`, {
    facts,
    hint:
      file === undefined
        ? 'Name a known_hosts file that holds the key of the host (ssh.knownHostsFile).'
        : `Add it with \`${scanCommand(target, facts.keyType)}\`, once its fingerprint agrees with what \`ssh-keygen -lf\` says on the host.`,
    remedies:
      file === undefined
        ? []
        : [{ kind: 'shell', on: 'host', where: null, text: scanCommand(target, facts.keyType) }],
  });
}

/** What the host is called in a known_hosts file. */
function nameOf({ host, port }: SshTarget): string {
  const name = host.toLowerCase();
  return port === SSH_PORT ? name : `[${name}]:${String(port)}`;
}

function scanCommand({ host, port, knownHostsFiles }: SshTarget, keyType: string): string {
  const file = quoteForShell(knownHostsFiles[0] ?? '');
  // ssh-keyscan knows the algorithms by the names of its own option.
  const type = keyType.replace(/^ssh-|-sha2-.*$/g, '');
  return `ssh-keyscan -p ${String(port)} -t ${type} ${quoteForShell(host)} >> ${file}`;
}

interface MarkedKey extends HostKey {
  readonly marker: string | null;
}

async function lookUp(
  name: string,
  file: string,
  signal: AbortSignal,
): Promise<readonly MarkedKey[]> {
  const { stdout } = await runProcess(
    { file: 'ssh-keygen', args: ['-F', name, '-f', file], env: {} },
    { signal, accept: [0, STATUS_NOT_FOUND] },
  );
  const lines = stdout.toString().split('\n');
  return lines.flatMap((line) => {
    if (line === '' || line.startsWith('#')) return [];
    const words = line.split(/\s+/);
    const marker = line.startsWith('@') ? (words.shift() ?? null) : null;
    const [, type, base64] = words;
    if (type === undefined || base64 === undefined) return [];
    return [{ marker, type, key: Buffer.from(base64, 'base64') }];
  });
}

async function isReadable(file: string, target: SshTarget): Promise<boolean> {
  try {
    await access(file, constants.R_OK);
    return true;
  } catch (cause) {
    const code = codeOf(cause);
    if (code === 'ENOENT') return false;
    throw new CloneError('SSH_HOST_KEY_UNKNOWN', `cannot read known hosts from ${file}`, {
      facts: { ...factsOf(target), file, reason: code ?? null },
      hint: `Let this user read ${file}, or name another file (ssh.knownHostsFile).`,
      cause,
    });
  }
}

/** A key begins with the length and the name of its type. */
export function typeOf(key: Buffer): string {
  return key.subarray(4, 4 + key.readUInt32BE(0)).toString('latin1');
}
