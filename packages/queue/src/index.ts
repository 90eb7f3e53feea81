/** Redis in one place: records, jobs, hosts, and a server for whoever has none. */
export { type CloneStore, openCloneStore, targetBusy } from './clone-store.ts';
export { embeddedRedisUrl, startEmbeddedRedis } from './embedded-redis.ts';
export { type HostQueue, type OpenClone, openHostQueue } from './host-queue.ts';
export { admitInstanceWish } from './instance-wish.ts';
export { notFound, versionOf } from './stored-clone.ts';
