/** The API's side, against a real Redis; workers are played by the other half of this package. */

import type { Clone, StreamEvent } from '@pgcloned/contract';
import { startRedis } from '@pgcloned/testbed';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { type CloneStore, openCloneStore, versionOf } from '../src/index.ts';
import { ended, eventually, openWorker, published, running, someClone } from './clones.ts';

const resources = new AsyncDisposableStack();
let url: string;
let store: CloneStore;
let raw: Redis;
const errors: Error[] = [];
const never = new AbortController().signal;

beforeAll(async () => {
  const redis = resources.use(await startRedis());
  url = redis.url;
  store = resources.use(await openCloneStore({ redisUrl: url, onError: (e) => errors.push(e) }));
  raw = resources.adopt(new Redis(redis.socket), (connection) => {
    connection.disconnect();
  });
});
afterAll(async () => {
  await resources.disposeAsync();
});
beforeEach(async () => {
  await raw.flushall();
  errors.length = 0;
});

test('an accepted clone is answered as it was written, waiting for its host', async () => {
  const clone = someClone();

  const { created } = await store.create(clone);

  expect(created).toBe(true);
  expect(await store.get(clone.id)).toEqual({
    ...clone,
    waitingFor: 'no worker of host replica-1 has registered',
  });
});

test('the same key with the same request answers the first clone, with another one is refused', async () => {
  const first = someClone();
  const key = { key: 'k', fingerprint: 'same' };
  await store.create(first, key);

  const again = await store.create(someClone(), key);

  expect(again.created).toBe(false);
  expect(again.clone.id).toBe(first.id);
  await expect(store.create(someClone(), { ...key, fingerprint: 'other' })).rejects.toMatchObject({
    code: 'IDEMPOTENCY_KEY_REUSED',
  });
  expect((await store.list({ pageSize: 10 })).clones).toHaveLength(1);
});

test('a host with a thousand clones that have not ended gets no more', async () => {
  const open = Array.from({ length: 1_000 }, (_, index) => [`id-${String(index)}`, '["/other"]']);
  await raw.hset('pgcloned:open:replica-1', Object.fromEntries(open) as Record<string, string>);

  await expect(store.create(someClone())).rejects.toMatchObject({ code: 'RATE_LIMITED' });
  const elsewhere = await store.create(someClone({ host: 'replica-2' }));

  expect(elsewhere.created).toBe(true);
});

test('a host and a log line that are no JSON do not hide the others', async () => {
  const clone = someClone();
  await store.create(clone);
  await raw.sadd('pgcloned:hosts', 'broken');
  await raw.hset('pgcloned:host:broken', { facts: '{', seenAt: '1', left: '0' });
  await raw.xadd(`pgcloned:events:${clone.id}`, '*', 'event', 'log', 'line', '{');
  await using _worker = await openWorker(url);

  expect((await store.hosts()).map(({ name }) => name)).toEqual(['replica-1']);
  expect((await store.list({ pageSize: 10 })).clones).toHaveLength(1);
  expect(await store.logs(clone.id)).toEqual([]);
});

test('what a later version has added to a record is left out, and nothing is made of the rest', async () => {
  const clone = someClone();
  await using worker = await openWorker(url);
  await store.create(clone);
  const { spec, instance } = clone;
  const later = {
    ...clone,
    mood: 'calm',
    spec: { ...spec, encryption: 'on', replica: { ...spec.replica, delay: 60 } },
    instance: { ...instance, load: 1 },
  };
  await raw.hset(`pgcloned:clone:${clone.id}`, 'record', JSON.stringify(later));

  expect(await store.get(clone.id)).toEqual(clone);
  expect((await store.list({ pageSize: 10 })).clones).toEqual([clone]);
  await expect(
    store.reset(clone.id, () => Promise.reject(new Error('of what cannot be read'))),
  ).rejects.toMatchObject({
    code: 'NOT_SUPPORTED',
  });
  await expect(worker.read(clone.id)).rejects.toThrow(/cannot be read/);
});

test('a record that cannot be read is forgotten by force, and lets go of its target', async () => {
  const target = { dataDirectory: '/srv/main' };
  const clone = someClone(target);
  await using _worker = await openWorker(url);
  await store.create(clone);
  await raw.hset(`pgcloned:clone:${clone.id}`, 'record', '{}');

  await expect(store.forget(clone.id, { force: false })).rejects.toThrow(/cannot be read/);
  await store.forget(clone.id, { force: true });

  expect(await store.get(clone.id)).toBeUndefined();
  expect((await store.create(someClone(target))).created).toBe(true);
});

test('a key becomes free when its clone is forgotten', async () => {
  const first = someClone();
  const key = { key: 'k', fingerprint: 'same' };
  await store.create(first, key);
  await store.forget(first.id, { force: true });

  expect((await store.create(someClone(), key)).created).toBe(true);
});

test.each([
  ['the same directory', { dataDirectory: '/srv/a' }],
  ['a directory inside', { dataDirectory: '/srv/a/b' }],
  ['a directory around', { dataDirectory: '/srv' }],
  ['its tablespace', { dataDirectory: '/srv/other', tablespaces: { '/fast': '/srv/fast/deep' } }],
  ['its WAL directory', { dataDirectory: '/srv/wal' }],
])('a second clone into %s is refused and told who holds it', async (_, target) => {
  const holder = someClone({
    dataDirectory: '/srv/a',
    walDirectory: '/srv/wal',
    tablespaces: { '/fast': '/srv/fast' },
  });
  await store.create(holder);

  await expect(store.create(someClone(target))).rejects.toMatchObject({
    code: 'TARGET_BUSY',
    facts: { holder: holder.id },
  });
  expect(await store.holderOf({ host: 'replica-1', ...target })).toBe(holder.id);
});

test('a directory on another host, or one that only begins alike, is free', async () => {
  await store.create(someClone({ dataDirectory: '/srv/a' }));

  await store.create(someClone({ dataDirectory: '/srv/ab' }));
  await store.create(someClone({ dataDirectory: '/srv/a', host: 'replica-2' }));
});

test('a directory is free again once its clone has ended', async () => {
  const clone = someClone({ dataDirectory: '/srv/a' });
  await store.create(clone);
  await store.cancel(clone.id);

  expect(await store.holderOf({ host: 'replica-1', dataDirectory: '/srv/a' })).toBeUndefined();
  await store.create(someClone({ dataDirectory: '/srv/a' }));
});

test('a list comes newest first, in pages, and filtered', async () => {
  const clones = [];
  for (const name of ['one', 'two', 'three', 'four', 'five']) {
    const clone = someClone(
      { host: name === 'two' ? 'replica-2' : 'replica-1' },
      { labels: { name, team: 'a=b' } },
    );
    clones.unshift((await store.create(clone)).clone);
  }
  await store.cancel(clones[0]?.id ?? '');
  const ids = clones.map(({ id }) => id);

  const first = await store.list({ pageSize: 2 });
  const second = await store.list({ pageSize: 3, pageToken: first.nextPageToken ?? '' });

  expect([...first.clones, ...second.clones].map(({ id }) => id)).toEqual(ids);
  expect(second.nextPageToken).toBeNull();
  const listed = async (o: Partial<Parameters<CloneStore['list']>[0]>) =>
    (await store.list({ pageSize: 10, ...o })).clones.map(({ id }) => ids.indexOf(id));
  expect(await listed({ state: 'cancelled' })).toEqual([0]);
  expect(await listed({ host: 'replica-2' })).toEqual([3]);
  expect(await listed({ label: 'name=three' })).toEqual([2]);
  expect(await listed({ label: 'team=a=b' })).toHaveLength(5);
  expect(await listed({ label: 'name' })).toHaveLength(5);
  expect(await listed({ label: 'team=a' })).toEqual([]);
  await expect(store.list({ pageSize: 1, pageToken: 'x' })).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
  });
});

test('a queued clone is cancelled at once, and once more without complaint', async () => {
  const clone = someClone();
  await store.create(clone);

  expect(await store.cancel(clone.id)).toMatchObject({ state: 'cancelled', waitingFor: null });
  expect(await store.cancel(clone.id)).toMatchObject({ state: 'cancelled' });
  expect((await store.get(clone.id))?.endedAt).not.toBeNull();
  await using worker = await openWorker(url);
  expect(await worker.openClones()).toEqual([]);
});

test('a clone whose deadline passes while it waits fails, once, and its target is free again', async () => {
  await using second = await openCloneStore({ redisUrl: url, onError: () => {} });
  await using worker = await openWorker(url);
  // By then all of them are what they shall be.
  const deadline = new Date(Date.now() + 3_000).toISOString();
  const [waiting, suspended, wished, taken] = [0, 1, 2, 3].map(() => someClone({}, { deadline }));
  if (!waiting || !suspended || !wished || !taken) throw new Error('none');
  const clones = [waiting, suspended, wished, taken];
  for (const clone of clones) await store.create(clone);
  const fence = { attempt: 1, workerId: 'worker-1' };
  for (const clone of [suspended, wished])
    await worker.confirm({ ...clone, startedAt: clone.createdAt }, fence);
  await worker.confirm(running(taken), fence);
  await store.cancel(wished.id);
  await worker[Symbol.asyncDispose]();

  for (const { id } of [waiting, suspended])
    await eventually(async () => (await second.get(id))?.state === 'failed');

  for (const { id } of [waiting, suspended])
    expect(await store.get(id)).toMatchObject({
      waitingFor: null,
      endedAt: expect.any(String),
      error: { code: 'DEADLINE_EXCEEDED', facts: { deadline } },
    });
  // Their worker tidies up and says how they end, when it is back.
  expect((await store.get(wished.id))?.state).toBe('cancelling');
  expect((await store.get(taken.id))?.state).toBe('running');
  await store.create(someClone({ dataDirectory: waiting.spec.target.dataDirectory }));
  await using late = await openWorker(url, { workerId: 'worker-2' });
  expect(await late.confirm(running(waiting), { attempt: 1, workerId: 'worker-2' })).toBe(
    'refused',
  );
  expect(await late.confirm(running(suspended), { attempt: 2, workerId: 'worker-2' })).toBe(
    'refused',
  );
});

test('between two attempts it is the worker that notices a deadline, if it lives', async () => {
  await using worker = await openWorker(url);
  const clone = someClone({}, { deadline: new Date(Date.now() - 500).toISOString() });
  const other = someClone({}, { deadline: new Date(Date.now() - 500).toISOString() });
  await store.create(clone);
  await worker.confirm(
    { ...clone, startedAt: clone.createdAt },
    { attempt: 1, workerId: 'worker-1' },
  );
  await store.create(other);

  await eventually(async () => (await store.get(other.id))?.state === 'failed');

  expect((await store.get(clone.id))?.state).toBe('queued');
});

test('the cancel of a running clone is a wish that the record shows and its worker hears', async () => {
  const clone = someClone();
  await store.create(clone);
  const heard = Promise.withResolvers<string>();
  await using worker = await openWorker(url, { onCancelRequested: heard.resolve });
  await worker.confirm(running(clone), { attempt: 1, workerId: 'worker-1' });

  expect(await store.cancel(clone.id)).toMatchObject({ state: 'cancelling' });
  expect(await store.cancel(clone.id)).toMatchObject({ state: 'cancelling' });
  worker.start();

  expect(await heard.promise).toBe(clone.id);
});

test('a published clone cannot be cancelled, and neither can one that has ended otherwise', async () => {
  const clone = someClone();
  const fence = { attempt: 1, workerId: 'worker-1' };
  await store.create(clone);
  await using worker = await openWorker(url);

  await worker.confirm(published(running(clone)), fence);
  await expect(store.cancel(clone.id)).rejects.toMatchObject({ code: 'TOO_LATE_TO_CANCEL' });
  await worker.confirm(ended(published(clone), 'succeeded'), fence);
  await expect(store.cancel(clone.id)).rejects.toMatchObject({ code: 'CLONE_ENDED' });
  await expect(store.cancel(clone.id.replace(/.$/, 'x'))).rejects.toMatchObject({
    code: 'NOT_FOUND',
  });
});

test('a wish that comes just after the publication is not shown any more', async () => {
  const clone = someClone();
  const fence = { attempt: 1, workerId: 'worker-1' };
  await store.create(clone);
  await using worker = await openWorker(url);
  await worker.confirm(running(clone), fence);
  await store.cancel(clone.id);

  await worker.confirm(published(running(clone)), fence);

  expect(await store.get(clone.id)).toMatchObject({ state: 'running' });
});

test('a change of the transfer is shown at once, and its worker hears of it with its next word', async () => {
  const clone = someClone({}, { transfer: { workers: 1, maxRate: 10_000 } });
  await store.create(clone);
  const heard: unknown[] = [];
  await using worker = await openWorker(url, {
    onTransferWished: (id, wish) => heard.push([id, wish]),
  });
  const fence = { attempt: 1, workerId: 'worker-1' };

  // Nobody has it yet: whoever takes it now knew it as it was before.
  const changed = await store.changeTransfer(clone.id, { workers: 3 });
  expect(changed.spec.transfer).toEqual({ ...clone.spec.transfer, workers: 3 });
  await worker.confirm(running(clone), fence);
  expect(heard).toEqual([[clone.id, { workers: 3, maxRate: 10_000 }]]);
  expect((await store.get(clone.id))?.spec.transfer.workers).toBe(3);
  await Promise.all([
    store.changeTransfer(clone.id, { maxRate: null }),
    store.changeTransfer(clone.id, { workers: null }),
  ]);
  // The next worker takes what stands there.
  await worker.confirm({ ...running(clone), attempt: 2 }, { ...fence, attempt: 2 });
  const [open] = await worker.openClones();
  await worker.confirm(ended({ ...clone, attempt: 2 }, 'failed'), { ...fence, attempt: 2 });

  expect(heard.at(-1)).toEqual([clone.id, { workers: null, maxRate: null }]);
  expect(open).toMatchObject({
    wishedTransfer: { workers: null, maxRate: null },
    clone: { spec: { transfer: { workers: null, maxRate: null } } },
  });
  // What it was copied with, its worker has said last.
  expect((await store.get(clone.id))?.spec.transfer).toMatchObject({ workers: 1, maxRate: 10_000 });
  await expect(store.changeTransfer(clone.id, { workers: 2 })).rejects.toMatchObject({
    code: 'CLONE_ENDED',
  });
});

test('what transfers nothing takes no rate', async () => {
  const clone = someClone({}, { method: 'reflink' });
  await store.create(clone);

  await expect(store.changeTransfer(clone.id, { maxRate: 10_000 })).rejects.toMatchObject({
    code: 'NOT_SUPPORTED',
  });
  expect((await store.changeTransfer(clone.id, { workers: 2 })).spec.transfer.workers).toBe(2);
});

test('a worker that says nothing by itself is woken for a change of the transfer', async () => {
  const clone = someClone();
  await store.create(clone);
  const heard = Promise.withResolvers<unknown>();
  await using worker = await openWorker(url, {
    onTransferWished: (_id, wish) => {
      heard.resolve(wish);
    },
  });
  await worker.confirm(running(clone), { attempt: 1, workerId: 'worker-1' });
  worker.start();

  await store.changeTransfer(clone.id, { maxRate: 50_000_000 });

  expect(await heard.promise).toEqual({ workers: null, maxRate: 50_000_000 });
});

test('only an ended clone is forgotten, unless that is forced', async () => {
  const clone = someClone();
  await store.create(clone);

  await expect(store.forget(clone.id, { force: false })).rejects.toMatchObject({
    code: 'CLONE_NOT_ENDED',
  });
  await store.forget(clone.id, { force: true });

  expect(await store.get(clone.id)).toBeUndefined();
  expect((await store.list({ pageSize: 10 })).clones).toEqual([]);
  await expect(store.forget(clone.id, { force: true })).rejects.toMatchObject({
    code: 'NOT_FOUND',
  });
  expect((await raw.keys('*')).filter((key) => key.includes(clone.id))).toEqual([]);
});

test('what is wished for a clone while it is reset is in its successor, or refused', async () => {
  await using worker = await openWorker(url);
  const old = someClone();
  await store.create(old);
  const { instance } = old;
  const there: Clone = {
    ...ended(old, 'succeeded'),
    instance: { ...instance, state: 'stopped' },
  };
  await worker.confirm(there, { attempt: 1, workerId: 'worker-1' });
  const seen: boolean[] = [];

  const { clone } = await store.reset(old.id, async (now) => {
    if (seen.length === 0) await store.changeInstance(old.id, { protected: true });
    seen.push(now.instance.protected);
    const made = someClone({ dataDirectory: old.spec.target.dataDirectory });
    return { ...made, resetOf: old.id };
  });

  expect(seen).toEqual([false, true]);
  for (const wish of [{ protected: false }, { ttl: 60, askedAt: old.createdAt }]) {
    await expect(store.changeInstance(old.id, wish)).rejects.toMatchObject({
      code: 'TARGET_BUSY',
      facts: { holder: clone.id },
    });
  }
  await store.changeInstance(clone.id, { protected: true });
});

test('a clone whose end is written unless somebody wishes for something stays as it was if so', async () => {
  await using worker = await openWorker(url);
  const fence = { attempt: 1, workerId: 'worker-1' };
  const clone = someClone();
  await store.create(clone);
  const there: Clone = {
    ...ended(clone, 'succeeded'),
    instance: { ...clone.instance, state: 'stopped' },
  };
  await worker.confirm(there, fence);
  await store.changeInstance(clone.id, { protected: true });
  const going: Clone = { ...there, instance: { ...there.instance, state: 'removing' } };
  const o = { done: null, unlessWished: true };

  expect(await worker.updateEnded(going, fence, o)).toBe('wished');
  expect((await store.get(clone.id))?.instance).toMatchObject({
    state: 'stopped',
    protected: true,
  });
  await worker.updateEnded(there, fence, { done: { protected: true } });
  expect(await worker.updateEnded(going, fence, o)).toBe('stored');
  await expect(store.changeInstance(clone.id, { protected: true })).rejects.toMatchObject({
    code: 'INSTANCE_MISSING',
  });
});

test('force forgets no clone that is protected as long as its host is online', async () => {
  const clone = someClone({}, { protected: true });
  const fence = { attempt: 1, workerId: 'worker-1' };
  {
    await using worker = await openWorker(url);
    await store.create(clone);
    const { instance } = clone;
    const kept = { ...ended(clone, 'succeeded'), instance: { ...instance, state: 'stopped' } };
    await worker.confirm(kept as typeof clone, fence);

    await expect(store.forget(clone.id, { force: true })).rejects.toMatchObject({
      code: 'CLONE_PROTECTED',
      hint: expect.stringContaining('protected'),
    });
    expect((await store.get(clone.id))?.state).toBe('succeeded');
  }

  await store.forget(clone.id, { force: true });
  expect(await store.get(clone.id)).toBeUndefined();
});

test('a host that stopped is offline, and its running clones have lost contact', async () => {
  const clone = someClone();
  await store.create(clone);
  {
    await using worker = await openWorker(url);
    await worker.confirm(running(clone), { attempt: 1, workerId: 'worker-1' });
    expect(await store.host('replica-1')).toMatchObject({ online: true, postgresMajors: [15] });
    expect(await store.get(clone.id)).toMatchObject({ contact: 'ok', lostSince: null });
  }

  const [host] = await store.hosts();
  expect(host).toMatchObject({ name: 'replica-1', online: false });
  expect(host).not.toHaveProperty('machineId');
  expect(await store.get(clone.id)).toMatchObject({
    contact: 'lost',
    lostSince: host?.lastSeenAt,
  });
  expect(await store.host('nobody')).toBeUndefined();
});

test('a stream begins with the record, brings lines and changes, and ends with the end', async () => {
  const clone = someClone();
  const fence = { attempt: 1, workerId: 'worker-1' };
  await store.create(clone);
  await using worker = await openWorker(url);
  const line = (message: string) => ({
    time: new Date().toISOString(),
    level: 'info' as const,
    phase: null,
    message,
    fields: {},
  });
  const events: StreamEvent[] = [];

  for await (const event of store.watch(clone.id, { lastEventId: null, signal: never })) {
    events.push(event);
    if (events.length > 1) continue;
    await worker.confirm(running(clone), fence);
    worker.appendLog(clone.id, line('one'));
    worker.appendLog(clone.id, line('two'));
    await worker.confirm(ended(clone, 'succeeded'), fence);
  }

  expect(events[0]).toMatchObject({ event: 'clone', data: { state: 'queued' } });
  expect(events.at(-1)).toMatchObject({ event: 'end', data: { state: 'succeeded' } });
  const logs = events.filter(({ event }) => event === 'log');
  expect(logs.map(({ data }) => 'message' in data && data.message)).toEqual(['one', 'two']);
  expect((await store.logs(clone.id)).map(({ message }) => message)).toEqual(['one', 'two']);

  const resumed: StreamEvent[] = [];
  const lastEventId = logs[0]?.id ?? '';
  for await (const event of store.watch(clone.id, { lastEventId, signal: never })) {
    resumed.push(event);
  }
  expect(resumed.map(({ event }) => event)).toEqual(['clone', 'log', 'end']);
  expect(resumed[1]?.data).toMatchObject({ message: 'two' });
});

test('a stream ends when nobody listens any more, or the clone is forgotten', async () => {
  const clone = someClone();
  await store.create(clone);
  const controller = new AbortController();

  for await (const _ of store.watch(clone.id, { lastEventId: null, signal: controller.signal })) {
    controller.abort();
  }
  for await (const _ of store.watch(clone.id, { lastEventId: 'nonsense', signal: never })) {
    await store.forget(clone.id, { force: true });
  }

  const events = store.watch(clone.id, { lastEventId: null, signal: never });
  await expect(events[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 'NOT_FOUND' });
});

test('a stream outlives the loss of the record, which its worker brings back', async () => {
  const clone = someClone();
  const fence = { attempt: 1, workerId: 'worker-1' };
  await store.create(clone);
  await using worker = await openWorker(url);
  await worker.confirm(running(clone), fence);
  const events: StreamEvent[] = [];

  for await (const event of store.watch(clone.id, { lastEventId: null, signal: never })) {
    events.push(event);
    if (events.length > 1) continue;
    await raw.flushall();
    // So that the stream sees that nothing is there.
    await raw.publish(`pgcloned:changed:${clone.id}`, '');
    setTimeout(() => void worker.confirm(ended(clone, 'succeeded'), fence), 200);
  }

  expect(events.map(({ event }) => event)).toEqual(['clone', 'end']);
  expect(events.at(-1)?.data).toMatchObject({ state: 'succeeded' });
});

test('progress does not push the log lines out of the stream', async () => {
  const clone = someClone();
  const fence = { attempt: 1, workerId: 'worker-1' };
  await store.create(clone);
  await using worker = await openWorker(url);

  for (let bytesDone = 0; bytesDone < 50; bytesDone++) {
    const progress = { ...clone.progress, bytesDone };
    await worker.confirm({ ...running(clone), progress }, fence);
  }

  expect(await raw.xlen(`pgcloned:events:${clone.id}`)).toBe(1);
});

test('who waits for a change is answered by it, or after his time with what there is', async () => {
  const clone = someClone();
  const { clone: before } = await store.create(clone);
  const wait = { version: versionOf(before), signal: never };

  expect(await store.waitForChange(clone.id, { ...wait, timeoutMs: 10 })).toEqual(before);
  const [after] = await Promise.all([
    store.waitForChange(clone.id, { ...wait, timeoutMs: 60_000 }),
    store.cancel(clone.id),
  ]);

  expect(after.state).toBe('cancelled');
  expect(await store.waitForChange(clone.id, { ...wait, timeoutMs: 60_000 })).toEqual(after);
});

test('a record that is none is not shown, and does not hide the others', async () => {
  const [good, bad] = [someClone(), someClone()];
  await store.create(good);
  await store.create(bad);
  const tampered = { ...bad, spec: { ...bad.spec, target: { dataDirectory: '../etc' } } };
  await raw.hset(`pgcloned:clone:${bad.id}`, 'record', JSON.stringify(tampered));

  expect((await store.list({ pageSize: 10 })).clones.map(({ id }) => id)).toEqual([good.id]);
  await expect(store.get(bad.id)).rejects.toThrow(`the record of clone ${bad.id} cannot be read`);
  expect(errors.map(({ message }) => message)).toEqual([
    `the record of clone ${bad.id} cannot be read`,
  ]);
});

test('ended clones beyond the limit of age go when a new one comes', async () => {
  const old = someClone();
  await store.create(old);
  await store.cancel(old.id);
  await raw.zadd('pgcloned:ended', 1, old.id);

  await store.create(someClone());

  await expect.poll(async () => await store.get(old.id)).toBeUndefined();
  expect(await raw.exists(`pgcloned:events:${old.id}`)).toBe(0);
});
