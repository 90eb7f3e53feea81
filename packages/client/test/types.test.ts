/** What the compiler promises to whoever uses the client; `tsc -b` checks this file, running it shows nothing more. */
import { expectTypeOf, test } from 'vitest';
import { answerOf, type Clone, type CloneSpec, connectApi, type Host } from '../src/index.ts';

const { http } = connectApi({ url: 'http://127.0.0.1:1', token: 'none' });
const path = { id: '0'.repeat(32) };

test('answers have the types of the document', () => {
  const spec: CloneSpec = {
    source: { name: 'orders' },
    target: { host: 'replica-1', dataDirectory: '/srv/clone' },
  };
  const create = async () =>
    await answerOf(
      http.POST('/v1/clones', { body: spec, params: { header: { 'idempotency-key': 'k' } } }),
    );
  const get = async () => await answerOf(http.GET('/v1/clones/{id}', { params: { path } }));
  const list = async () =>
    await answerOf(http.GET('/v1/clones', { params: { query: { state: 'running' } } }));
  const hosts = async () => await answerOf(http.GET('/v1/hosts'));

  expectTypeOf(create).returns.resolves.toExtend<Clone>();
  expectTypeOf(get).returns.resolves.toExtend<Clone>();
  expectTypeOf(list).returns.resolves.toExtend<{ clones: Clone[]; nextPageToken: string | null }>();
  expectTypeOf(hosts).returns.resolves.toExtend<{ hosts: Host[] }>();
});

test('what the document does not know does not compile', () => {
  const source = { name: 'orders' };
  const target = { host: 'replica-1', dataDirectory: '/srv/clone' };
  const send = async (body: CloneSpec) => await http.POST('/v1/clones', { body });

  // @ts-expect-error There is no such method.
  expectTypeOf(send).toBeCallableWith({ source, target, method: 'tar' });
  // @ts-expect-error A clone needs a data directory.
  expectTypeOf(send).toBeCallableWith({ source, target: { host: 'replica-1' } });
  expectTypeOf<Clone['state']>().not.toEqualTypeOf<string>();
});
