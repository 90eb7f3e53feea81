/**
 * The names of everything that we keep in Redis.
 *
 *     pgcloned:clone:<id>         hash: record (JSON), and what scripts compare: state, ended, attempt, workerId, marker;
 *                                 and what was asked of its worker: cancel (when), transfer and instance (JSON, the last
 *                                 wish of each)
 *     pgcloned:events:<id>        stream, capped: log lines, and the marker of the last change of the record
 *     pgcloned:clones             sorted set of ids; they are UUIDv7, so their order is that of creation
 *     pgcloned:ended              sorted set of the ids of ended clones that have no files, by the time of their end, for
 *                                 retention
 *     pgcloned:open:<host>        hash: id of a clone that has not ended → the directories it will write, as JSON
 *     pgcloned:wished:<host>      set of the ids of clones with a wish for their instance
 *     pgcloned:idempotency:<hash> hash: id and fingerprint of the request that came with a key
 *     pgcloned:hosts              set of host names
 *     pgcloned:host:<name>        hash: facts (JSON), machineId, workerId, seenAt, left
 *     pgcloned:preflight:<id>     what a preflight is asked for (JSON); gone after a minute or two
 *     pgcloned:answer:<id>        the answer of its worker (JSON); gone after a minute
 *     pgcloned:changed:<id>       channel: the clone has changed, or was forgotten; the preflight is answered
 *     pgcloned:host-<name>:*      BullMQ's, the clones of a host
 *     pgcloned:control-<name>:*   BullMQ's, what must not wait behind an hour-long copy
 */

export const BULL_PREFIX = 'pgcloned';
export const INDEX_KEY = 'pgcloned:clones';
export const ENDED_KEY = 'pgcloned:ended';
export const HOSTS_KEY = 'pgcloned:hosts';

export const cloneKey = (id: string) => `pgcloned:clone:${id}`;
export const eventsKey = (id: string) => `pgcloned:events:${id}`;
export const openKey = (host: string) => `pgcloned:open:${host}`;
export const wishedKey = (host: string) => `pgcloned:wished:${host}`;
export const hostKey = (name: string) => `pgcloned:host:${name}`;
export const idempotencyKey = (hash: string) => `pgcloned:idempotency:${hash}`;
export const preflightKey = (id: string) => `pgcloned:preflight:${id}`;
export const answerKey = (id: string) => `pgcloned:answer:${id}`;
export const changedChannel = (id: string) => `pgcloned:changed:${id}`;
export const FORGOTTEN_MESSAGE = 'forgotten';

export const clonesQueueName = (host: string) => `host-${host}`;
export const controlQueueName = (host: string) => `control-${host}`;
