/**
 * The keys with which we prove who we are: the one that was asked for, then the agent's, then the default ones.
 *
 * Keys with a passphrase are the agent's business: a daemon has nobody to ask.
 */
import { readFile } from 'node:fs/promises';
import { CloneError } from '@pgcloned/contract';
import { codeOf } from '@pgcloned/process';
import ssh2 from 'ssh2';
import { factsOf, type SshTarget } from './ssh-target.ts';

/** The name of the agent's keys: no file, whose names are absolute. */
export const AGENT = 'agent';

export interface ClientKey {
  /** The file, or {@link AGENT}. */
  readonly name: string;
  readonly method: ssh2.AnyAuthMethod;
  /** As a line of authorized_keys; null for an agent, whose keys we do not see. */
  readonly publicKey: string | null;
}

/** @throws {CloneError} `SSH_AUTHENTICATION_FAILED` if the key that was asked for cannot be used, or there is none at all. */
export async function readClientKeys(target: SshTarget): Promise<readonly ClientKey[]> {
  const { user: username, privateKeyFile, agentSocket, defaultKeyFiles } = target;
  const keys: ClientKey[] = [];
  const passedOver: string[] = [];
  if (privateKeyFile !== null) {
    const key = await readKey(privateKeyFile);
    if (typeof key === 'string') {
      throw new CloneError('SSH_AUTHENTICATION_FAILED', `the SSH key cannot be used: ${key}`, {
        facts: { ...factsOf(target), privateKeyFile },
        hint: `Name a private key without passphrase that this user may read (ssh.privateKeyFile), or load it into an agent (ssh.agent).`,
      });
    }
    keys.push({
      name: privateKeyFile,
      method: { type: 'publickey', username, key },
      publicKey: publicLine(key),
    });
  }
  if (agentSocket !== null) {
    keys.push({
      name: AGENT,
      method: { type: 'agent', username, agent: agentSocket },
      publicKey: null,
    });
  }
  for (const file of defaultKeyFiles) {
    const key = await readKey(file);
    if (typeof key === 'string') passedOver.push(`${file}: ${key}`);
    else
      keys.push({
        name: file,
        method: { type: 'publickey', username, key },
        publicKey: publicLine(key),
      });
  }
  if (keys.length > 0) return keys;
  throw new CloneError('SSH_AUTHENTICATION_FAILED', 'there is no SSH key to use', {
    facts: { ...factsOf(target), passedOver: passedOver.join('; ') },
    hint: 'Name a private key (ssh.privateKeyFile), or use an agent (ssh.agent).',
  });
}

const publicLine = (key: ssh2.ParsedKey) => `${key.type} ${key.getPublicSSH().toString('base64')}`;

/** A text says why there is none. */
async function readKey(file: string): Promise<ssh2.ParsedKey | string> {
  let content: Buffer;
  try {
    content = await readFile(file);
  } catch (error) {
    const code = codeOf(error);
    return code === 'ENOENT' ? 'there is no such file' : `it cannot be read (${code ?? ''})`;
  }
  const key = ssh2.utils.parseKey(content);
  if (key instanceof Error) {
    return key.message.includes('no passphrase given')
      ? 'it has a passphrase'
      : 'it is not a private key';
  }
  return key.isPrivateKey() ? key : 'it is not a private key';
}
