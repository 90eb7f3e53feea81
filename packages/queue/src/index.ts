/** Redis in one place: records, jobs, hosts, and a server for whoever has none. */
export {
  type CloneStore,
  type Idempotency,
  type ListOptions,
  openCloneStore,
} from './clone-store.ts';
export { type EmbeddedRedis, embeddedRedisUrl, startEmbeddedRedis } from './embedded-redis.ts';
export {
  type HostQueue,
  type HostQueueOptions,
  type OpenClone,
  openHostQueue,
} from './host-queue.ts';
export type { PublishOutcome } from './record-publisher.ts';
export { describeRedis } from './redis-connection.ts';
export type { Fence } from './scripts.ts';
export { isPublished, versionOf } from './stored-clone.ts';
