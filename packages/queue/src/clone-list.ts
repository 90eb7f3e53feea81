/** Pages of clones, newest first. */
import { type Clone, CloneError, type CloneState } from '@pgcloned/contract';
import type { Redis } from 'ioredis';
import { type KnownHost, readHosts } from './host-registry.ts';
import { INDEX_KEY } from './keys.ts';
import { ask } from './redis-connection.ts';
import { presentClone, RecordUnreadableError, readClone } from './stored-clone.ts';

const INDEX_BATCH = 100;

export interface ListOptions {
  readonly state?: CloneState | undefined;
  readonly host?: string | undefined;
  /** `name`, or `name=value`. */
  readonly label?: string | undefined;
  readonly pageSize: number;
  readonly pageToken?: string | undefined;
}

export interface ClonePage {
  readonly clones: readonly Clone[];
  /** Null: this is the last one. */
  readonly nextPageToken: string | null;
}

interface Context {
  readonly redis: Redis;
  /** Hears of a record that cannot be read; it is left out. */
  readonly onUnreadable: (error: Error) => void;
}

/** @throws {CloneError} `REQUEST_INVALID` if the page token is none of ours, `QUEUE_UNAVAILABLE`. */
export async function listClones(
  { pageSize, pageToken, ...wanted }: ListOptions,
  context: Context,
): Promise<ClonePage> {
  const { redis } = context;
  const hosts = await readHosts(redis);
  const clones: Clone[] = [];
  let last = pageToken === undefined ? undefined : idOfPageToken(pageToken);
  for (;;) {
    const from = last === undefined ? '+' : `(${last}`;
    const ids = await ask(redis.zrevrangebylex(INDEX_KEY, from, '-', 'LIMIT', 0, INDEX_BATCH));
    for (const clone of await readAll(ids, hosts, context)) {
      if (!matches(clone, wanted)) continue;
      // One more than the page holds: only now is it known that there is a next page.
      const previous = clones.at(-1);
      if (clones.length === pageSize && previous !== undefined) {
        return { clones, nextPageToken: Buffer.from(previous.id, 'hex').toString('base64url') };
      }
      clones.push(clone);
    }
    last = ids.at(-1);
    if (last === undefined || ids.length < INDEX_BATCH) return { clones, nextPageToken: null };
  }
}

/** In the order of `ids`. */
async function readAll(
  ids: readonly string[],
  hosts: ReadonlyMap<string, KnownHost>,
  { redis, onUnreadable }: Context,
): Promise<readonly Clone[]> {
  const clones = await Promise.all(
    ids.map(async (id) => {
      try {
        const stored = await readClone(redis, id, { partly: true });
        return stored && presentClone(stored, hosts.get(stored.clone.host));
      } catch (error) {
        if (!(error instanceof RecordUnreadableError)) throw error;
        onUnreadable(error);
        return undefined;
      }
    }),
  );
  return clones.filter((clone) => clone !== undefined);
}

function matches(
  clone: Clone,
  { state, host, label }: Pick<ListOptions, 'state' | 'host' | 'label'>,
): boolean {
  if (state !== undefined && clone.state !== state) return false;
  if (host !== undefined && clone.host !== host) return false;
  if (label === undefined) return true;
  const [name = '', ...rest] = label.split('=');
  const value = clone.spec.labels[name];
  return value !== undefined && (rest.length === 0 || value === rest.join('='));
}

function idOfPageToken(token: string): string {
  const id = Buffer.from(token, 'base64url').toString('hex');
  if (/^[0-9a-f]{32}$/.test(id)) return id;
  throw new CloneError('REQUEST_INVALID', 'the page token is none of ours', {
    hint: 'Use nextPageToken of the page before as it is, or leave pageToken out.',
  });
}
