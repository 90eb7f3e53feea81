/** The slot of a replica whose clone broke off is found again by its note, on the server where it was made. */
import { SourceConfiguration } from '@pgcloned/contract';
import { openSession, resolveConnection } from '@pgcloned/postgres';
import { scratchDirectory, startSource } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import type { CloneRun } from '../src/clone-run.ts';
import { dropNotedSlot, makeReplicaSlot, notedSlot } from '../src/replica/slot.ts';
import { makePlace } from '../src/target/layout.ts';

const { signal } = new AbortController();

test('a slot is dropped where it was made, whatever server is copied next', async () => {
  await using source = await startSource();
  await using scratch = await scratchDirectory();
  const { host, port, ...rest } = source.configuration;
  const configuration = SourceConfiguration.parse({
    ...rest,
    hosts: ['127.0.0.2:1', `${host}:${String(port)}`],
  });
  const plan = { id: 'f'.repeat(32), attempt: 1, source: configuration, password: null };
  // Of a killed clone no cleanup runs.
  const cleanup = { always: () => {}, onFailure: () => {} };
  const run = { plan, signal, cleanup } as unknown as CloneRun;
  const settings = await resolveConnection({ ...configuration, host, port });
  const data = makePlace('data', scratch.path, { cloneId: plan.id, replaces: false });
  const slots = async () =>
    (await source.primary.query('SELECT slot_name FROM pg_replication_slots')).length;
  {
    await using session = await openSession(settings, { applicationName: 'slot-test', signal });
    await makeReplicaSlot(run, { session, settings, address: settings, slotName: 'mine', data });
  }
  const noted = await notedSlot(scratch.path);
  if (noted === null) throw new Error('there is no note');
  expect(noted).toEqual({ slotName: 'mine', server: { host, port } });
  expect(await slots()).toBe(1);

  expect(await dropNotedSlot(run, noted, scratch.path)).toEqual([]);

  expect(await slots()).toBe(0);
  await source.primary.stop();
  expect(await dropNotedSlot(run, noted, scratch.path)).toEqual([
    {
      what: `replication slot mine on ${host}:${String(port)}`,
      remedy: "SELECT pg_drop_replication_slot('mine')",
    },
  ]);
});
