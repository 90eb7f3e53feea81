/**
 * What must happen at once or not at all, as Lua that Redis runs.
 *
 * JSON of a record is never decoded here: cjson turns empty lists into objects and large numbers into rounded ones.
 * What a script has to compare stands in fields of its own beside the record.
 */
import type { CloneState, InstanceWish, TransferLimits } from '@pgcloned/contract';
import type { Redis } from 'ioredis';
import { formatInstanceWish } from './instance-wish.ts';
import {
  cloneKey,
  ENDED_KEY,
  eventsKey,
  FORGOTTEN_MESSAGE,
  HOSTS_KEY,
  hostKey,
  INDEX_KEY,
  openKey,
  wishedKey,
} from './keys.ts';
import { ask } from './redis-connection.ts';
import { formatTransferWish, parseTransferWish } from './transfer-wish.ts';

/** Enough for every line of an ordinary clone; of a noisy one the oldest go. */
const EVENTS_PER_CLONE_MAX = 1000;

/** Far more than wait for one host on a bad day; a caller that asks in a loop must not fill Redis. */
const OPEN_PER_HOST_MAX = 1000;

/**
 * One marker per stream says that the record has changed. The one before it is deleted, so that two changes per second for
 * an hour do not push the log lines out.
 */
const MARK = `
  local function mark(clone, events, id, event)
    local last = redis.call('HGET', clone, 'marker')
    if last then redis.call('XDEL', events, last) end
    local marker = redis.call('XADD', events, 'MAXLEN', '~', ${String(EVENTS_PER_CLONE_MAX)}, '*', 'event', event)
    redis.call('HSET', clone, 'marker', marker)
    redis.call('PUBLISH', 'pgcloned:changed:' .. id, '')
  end
`;

const CREATE = `${MARK}
  local clone, events, index, open, idempotency, reset, reset_events = unpack(KEYS)
  local id, record, directories, fingerprint, keep_ms, reset_id, reset_marker = unpack(ARGV)
  if fingerprint ~= '' then
    local known = redis.call('HMGET', idempotency, 'id', 'fingerprint')
    if known[1] and redis.call('EXISTS', 'pgcloned:clone:' .. known[1]) == 1 then
      if known[2] == fingerprint then return {'known', known[1]} end
      return {'reused', known[1]}
    end
  end
  local function overlap(one, other)
    return one == other or one:sub(1, #other + 1) == other .. '/' or other:sub(1, #one + 1) == one .. '/'
  end
  local wanted = cjson.decode(directories)
  local held = redis.call('HGETALL', open)
  for i = 1, #held, 2 do
    for _, theirs in ipairs(cjson.decode(held[i + 1])) do
      for _, ours in ipairs(wanted) do
        if overlap(ours, theirs) then return {'busy', held[i]} end
      end
    end
  end
  if #held >= 2 * ${String(OPEN_PER_HOST_MAX)} then return {'full', ''} end
  if reset_id ~= '' then
    if redis.call('HGET', reset, 'marker') ~= reset_marker then return {'changed', ''} end
    mark(reset, reset_events, reset_id, 'end')
  end
  redis.call('HSET', clone, 'record', record, 'state', 'queued', 'ended', '0', 'attempt', '1', 'workerId', '')
  redis.call('ZADD', index, 0, id)
  redis.call('HSET', open, id, directories)
  if fingerprint ~= '' then
    redis.call('HSET', idempotency, 'id', id, 'fingerprint', fingerprint)
    redis.call('PEXPIRE', idempotency, keep_ms)
  end
  mark(clone, events, id, 'clone')
  return {'created', id}
`;

export type CreateOutcome = 'created' | 'known' | 'reused' | 'busy' | 'full' | 'changed';

/**
 * Writes the record of a new clone, unless its key is known, another clone of the host holds one of its directories, or
 * too many wait there.
 *
 * @param o.reset The clone whose place it takes. Only as long as the record of that is still the one with this marker, which it
 *   is not any more afterwards: what somebody wishes for it meanwhile is either in the new clone or refused.
 */
export async function createRecord(
  redis: Redis,
  o: {
    readonly id: string;
    readonly host: string;
    readonly record: string;
    readonly directories: readonly string[];
    readonly idempotency: {
      readonly key: string;
      readonly fingerprint: string;
      readonly keepMs: number;
    };
    readonly reset: { readonly id: string; readonly marker: string } | null;
  },
): Promise<{ readonly outcome: CreateOutcome; readonly id: string }> {
  const reset = o.reset ?? { id: '', marker: '' };
  const keys = [
    ...[cloneKey(o.id), eventsKey(o.id), INDEX_KEY, openKey(o.host), o.idempotency.key],
    ...[cloneKey(reset.id), eventsKey(reset.id)],
  ];
  const { fingerprint, keepMs } = o.idempotency;
  const answer = redis.eval(
    CREATE,
    keys.length,
    ...keys,
    o.id,
    o.record,
    JSON.stringify(o.directories),
    fingerprint,
    keepMs,
    reset.id,
    reset.marker,
  );
  const [outcome, id] = (await ask(answer)) as [CreateOutcome, string];
  return { outcome, id };
}

/** What has files on its host is history only when they are gone. */
const RETAIN = `
  local function retain(ended_index, id, ended_at, has_files)
    if has_files == '1' then redis.call('ZREM', ended_index, id)
    else redis.call('ZADD', ended_index, ended_at, id) end
  end
`;

const WRITE = `${MARK}${RETAIN}
  local clone, events, index, open, ended_index = unpack(KEYS)
  local id, record, state, attempt, worker, ended, ended_at, directories, has_files = unpack(ARGV)
  local stored = redis.call('HMGET', clone, 'attempt', 'workerId', 'ended', 'record', 'cancel', 'transfer')
  if stored[1] then
    local same_attempt = tonumber(stored[1]) == tonumber(attempt)
    local same_owner = same_attempt and stored[2] == worker
    if tonumber(stored[1]) > tonumber(attempt) then return {'refused', '', ''} end
    if same_attempt and stored[2] ~= '' and not same_owner then return {'refused', '', ''} end
    if stored[3] == '1' and not (same_owner and ended == '1') then return {'refused', '', ''} end
  end
  for i = 10, #ARGV do
    redis.call('XADD', events, 'MAXLEN', '~', ${String(EVENTS_PER_CLONE_MAX)}, '*', 'event', 'log', 'line', ARGV[i])
  end
  if stored[4] ~= record then
    redis.call('HSET', clone, 'record', record, 'state', state, 'ended', ended, 'attempt', attempt, 'workerId', worker)
    redis.call('ZADD', index, 0, id)
    if ended == '1' then
      redis.call('HDEL', open, id)
      retain(ended_index, id, ended_at, has_files)
      redis.call('HDEL', clone, 'cancel', 'transfer')
    else
      redis.call('HSET', open, id, directories)
    end
    mark(clone, events, id, ended == '1' and 'end' or 'clone')
  elseif #ARGV > 9 then
    redis.call('PUBLISH', 'pgcloned:changed:' .. id, '')
  end
  if ended == '1' then return {'stored', '', ''} end
  return {'stored', stored[5] or '', stored[6] or ''}
`;

/** Who may write a record: the attempt, and within it the worker that took the clone first. */
export interface Fence {
  readonly attempt: number;
  readonly workerId: string;
}

export interface RecordToWrite {
  readonly id: string;
  readonly host: string;
  readonly record: string;
  readonly state: CloneState;
  /** Milliseconds since 1970; null: it has not ended. */
  readonly endedAtMs: number | null;
  readonly directories: readonly string[];
  /** Whether something of it lies on its host. */
  readonly hasFiles: boolean;
}

export interface WriteAnswer {
  readonly outcome: 'stored' | 'refused';
  readonly cancelRequested: boolean;
  /** What its transfer shall be like; null: as it was asked for at first. */
  readonly wishedTransfer: TransferLimits | null;
}

/**
 * Writes a record in the name of a worker, with the log lines that came before it. A record that Redis lost is written as
 * if it were new. Refused: an ended record of somebody else, a newer attempt, another worker's.
 */
export async function writeRecord(
  redis: Redis,
  o: RecordToWrite,
  fence: Fence,
  logLines: readonly string[],
): Promise<WriteAnswer> {
  const keys = [cloneKey(o.id), eventsKey(o.id), INDEX_KEY, openKey(o.host), ENDED_KEY];
  const [outcome, cancel, transfer] = (await ask(
    redis.eval(
      WRITE,
      keys.length,
      ...keys,
      o.id,
      o.record,
      o.state,
      fence.attempt,
      fence.workerId,
      o.endedAtMs === null ? '0' : '1',
      o.endedAtMs ?? 0,
      JSON.stringify(o.directories),
      o.hasFiles ? '1' : '0',
      ...logLines,
    ),
  )) as ['stored' | 'refused', string, string];
  return { outcome, cancelRequested: cancel !== '', wishedTransfer: parseTransferWish(transfer) };
}

const END_QUEUED = `${MARK}
  local clone, events, open, ended_index = unpack(KEYS)
  local id, record, state, marker, ended_at = unpack(ARGV)
  if redis.call('HGET', clone, 'marker') ~= marker then return 0 end
  redis.call('HSET', clone, 'record', record, 'state', state, 'ended', '1')
  redis.call('HDEL', open, id)
  redis.call('ZADD', ended_index, ended_at, id)
  mark(clone, events, id, 'end')
  return 1
`;

/** Ends a clone that no worker works on. @returns Whether the record was still the one with this marker. */
export async function endQueuedRecord(
  redis: Redis,
  o: RecordToWrite & { readonly marker: string },
): Promise<boolean> {
  const keys = [cloneKey(o.id), eventsKey(o.id), openKey(o.host), ENDED_KEY];
  const answer = redis.eval(
    END_QUEUED,
    keys.length,
    ...keys,
    o.id,
    o.record,
    o.state,
    o.marker,
    o.endedAtMs ?? 0,
  );
  return (await ask(answer)) === 1;
}

const REQUEST_CANCEL = `${MARK}
  local clone, events = unpack(KEYS)
  local id, requested_at = unpack(ARGV)
  local stored = redis.call('HMGET', clone, 'ended', 'workerId')
  if stored[1] ~= '0' or stored[2] == '' then return 0 end
  if redis.call('HSETNX', clone, 'cancel', requested_at) == 1 then mark(clone, events, id, 'clone') end
  return 1
`;

/** Leaves the wish with a record that a worker owns. @returns Whether the clone was still with a worker. */
export async function requestCancel(
  redis: Redis,
  id: string,
  requestedAt: string,
): Promise<boolean> {
  const answer = redis.eval(REQUEST_CANCEL, 2, cloneKey(id), eventsKey(id), id, requestedAt);
  return (await ask(answer)) === 1;
}

const WISH_FOR_TRANSFER = `${MARK}
  local clone, events = unpack(KEYS)
  local id, before, wish = unpack(ARGV)
  local stored = redis.call('HMGET', clone, 'ended', 'transfer')
  if stored[1] ~= '0' or (stored[2] or '') ~= before then return 0 end
  redis.call('HSET', clone, 'transfer', wish)
  mark(clone, events, id, 'clone')
  return 1
`;

/**
 * Leaves with a record how its transfer shall go on. It stays there until the clone has ended: a worker that knows nothing
 * of it yet, or the next one, finds it with every word that it brings.
 *
 * @returns False if the clone has ended, or the last wish is another than `before`.
 */
export async function wishForTransfer(
  redis: Redis,
  o: {
    readonly id: string;
    readonly before: TransferLimits | null;
    readonly wish: TransferLimits;
  },
): Promise<boolean> {
  const before = o.before === null ? '' : formatTransferWish(o.before);
  const keys = [cloneKey(o.id), eventsKey(o.id)];
  const answer = redis.eval(
    WISH_FOR_TRANSFER,
    2,
    ...keys,
    o.id,
    before,
    formatTransferWish(o.wish),
  );
  return (await ask(answer)) === 1;
}

const UPDATE_ENDED = `${MARK}${RETAIN}
  local clone, events, ended_index, wished = unpack(KEYS)
  local id, record, attempt, worker, ended_at, has_files, done, unless_wished = unpack(ARGV)
  local stored = redis.call('HMGET', clone, 'attempt', 'workerId', 'ended', 'instance', 'record')
  if not stored[1] then
    redis.call('SREM', wished, id)
    return 'unknown'
  end
  if tonumber(stored[1]) ~= tonumber(attempt) or stored[2] ~= worker or stored[3] ~= '1' then return 'refused' end
  local is_done = done ~= '' and stored[4] == done
  if unless_wished == '1' and stored[4] and not is_done then return 'wished' end
  if is_done then redis.call('HDEL', clone, 'instance') end
  if is_done or not stored[4] then redis.call('SREM', wished, id) end
  if is_done or stored[5] ~= record then
    redis.call('HSET', clone, 'record', record)
    retain(ended_index, id, ended_at, has_files)
    mark(clone, events, id, 'end')
  end
  return 'stored'
`;

export type UpdateEndedOutcome = 'stored' | 'refused' | 'unknown' | 'wished';

/**
 * Writes what has become of the instance of a clone that has ended, in the name of the worker that ended it. A record that
 * was forgotten does not come back.
 *
 * @param o.done The wish that was carried out, which goes unless there is another one by now; null: none was.
 * @param o.unlessWished Nothing is written if another one is there: `wished`.
 */
export async function updateEndedRecord(
  redis: Redis,
  o: RecordToWrite,
  fence: Fence,
  { done, unlessWished }: { readonly done: InstanceWish | null; readonly unlessWished: boolean },
): Promise<UpdateEndedOutcome> {
  const keys = [cloneKey(o.id), eventsKey(o.id), ENDED_KEY, wishedKey(o.host)];
  const answer = redis.eval(
    UPDATE_ENDED,
    keys.length,
    ...keys,
    o.id,
    o.record,
    fence.attempt,
    fence.workerId,
    o.endedAtMs ?? 0,
    o.hasFiles ? '1' : '0',
    done === null ? '' : formatInstanceWish(done),
    unlessWished ? '1' : '0',
  );
  return (await ask(answer)) as UpdateEndedOutcome;
}

const WISH_FOR_INSTANCE = `${MARK}
  local clone, events, wished = unpack(KEYS)
  local id, marker, wish = unpack(ARGV)
  if redis.call('HGET', clone, 'marker') ~= marker then return 0 end
  redis.call('HSET', clone, 'instance', wish)
  redis.call('SADD', wished, id)
  mark(clone, events, id, redis.call('HGET', clone, 'ended') == '1' and 'end' or 'clone')
  return 1
`;

/**
 * Leaves with a record what is wished for its instance. It stays there until the worker of its host has carried it out.
 *
 * @returns Whether the record was still the one with this marker.
 */
export async function wishForInstance(
  redis: Redis,
  o: {
    readonly id: string;
    readonly host: string;
    readonly marker: string;
    readonly wish: InstanceWish;
  },
): Promise<boolean> {
  const keys = [cloneKey(o.id), eventsKey(o.id), wishedKey(o.host)];
  const wish = formatInstanceWish(o.wish);
  const answer = redis.eval(WISH_FOR_INSTANCE, keys.length, ...keys, o.id, o.marker, wish);
  return (await ask(answer)) === 1;
}

const FORGET = `
  local clone, events, index, open, ended_index, wished = unpack(KEYS)
  local id, force, marker = unpack(ARGV)
  if force ~= '1' and redis.call('HGET', clone, 'marker') ~= marker then return 0 end
  redis.call('DEL', clone, events)
  redis.call('SREM', wished, id)
  redis.call('ZREM', index, id)
  redis.call('ZREM', ended_index, id)
  redis.call('HDEL', open, id)
  redis.call('PUBLISH', 'pgcloned:changed:' .. id, '${FORGOTTEN_MESSAGE}')
  return 1
`;

/**
 * @param o.marker The record is forgotten only as long as it is still the one with this marker; null: in any case.
 * @returns Whether it was forgotten.
 */
export async function forgetRecord(
  redis: Redis,
  o: { readonly id: string; readonly host: string; readonly marker: string | null },
): Promise<boolean> {
  const keys = [
    ...[cloneKey(o.id), eventsKey(o.id), INDEX_KEY, openKey(o.host), ENDED_KEY],
    wishedKey(o.host),
  ];
  const force = o.marker === null ? '1' : '0';
  const answer = redis.eval(FORGET, keys.length, ...keys, o.id, force, o.marker ?? '');
  return (await ask(answer)) === 1;
}

const PRUNE = `
  local ended_index, index = unpack(KEYS)
  local older_than, count_max, batch = unpack(ARGV)
  local victims = redis.call('ZRANGEBYSCORE', ended_index, '-inf', older_than, 'LIMIT', 0, batch)
  local surplus = redis.call('ZCARD', ended_index) - #victims - tonumber(count_max)
  if surplus > 0 then
    local from = #victims
    local more = redis.call('ZRANGE', ended_index, from, from + math.min(surplus, tonumber(batch)) - 1)
    for _, id in ipairs(more) do table.insert(victims, id) end
  end
  for _, id in ipairs(victims) do
    redis.call('DEL', 'pgcloned:clone:' .. id, 'pgcloned:events:' .. id)
    redis.call('ZREM', index, id)
    redis.call('ZREM', ended_index, id)
  end
  return #victims
`;

/** Removes ended clones that are too old or too many, a bounded number at a time. */
export async function pruneEnded(
  redis: Redis,
  o: { readonly endedBeforeMs: number; readonly countMax: number },
): Promise<void> {
  await ask(redis.eval(PRUNE, 2, ENDED_KEY, INDEX_KEY, o.endedBeforeMs, o.countMax, 100));
}

const REGISTER_HOST = `
  local host, hosts = unpack(KEYS)
  local name, machine, worker, facts, online_ms = unpack(ARGV)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local known = redis.call('HMGET', host, 'machineId', 'seenAt', 'left')
  if known[1] and known[1] ~= machine and known[3] == '0' and now - tonumber(known[2]) < tonumber(online_ms) then
    return 0
  end
  redis.call('HSET', host, 'facts', facts, 'machineId', machine, 'workerId', worker, 'seenAt', string.format('%.0f', now), 'left', '0')
  redis.call('SADD', hosts, name)
  return known[1] and 1 or 2
`;

/** One heartbeat. @returns `taken` if another machine with this name is alive, `new` if Redis did not know the host. */
export async function registerHost(
  redis: Redis,
  o: {
    readonly name: string;
    readonly machineId: string;
    readonly workerId: string;
    readonly facts: string;
    readonly onlineMs: number;
  },
): Promise<'taken' | 'known' | 'new'> {
  const answer = redis.eval(
    REGISTER_HOST,
    2,
    hostKey(o.name),
    HOSTS_KEY,
    o.name,
    o.machineId,
    o.workerId,
    o.facts,
    o.onlineMs,
  );
  const outcome = (await ask(answer)) as number;
  return outcome === 0 ? 'taken' : outcome === 1 ? 'known' : 'new';
}

const LEAVE_HOST = `
  if redis.call('HGET', KEYS[1], 'workerId') == ARGV[1] then redis.call('HSET', KEYS[1], 'left', '1') end
`;

/** Says that the worker was stopped on purpose: its host is offline from now on, not only when it is missed. */
export async function leaveHost(redis: Redis, name: string, workerId: string): Promise<void> {
  await ask(redis.eval(LEAVE_HOST, 1, hostKey(name), workerId));
}
