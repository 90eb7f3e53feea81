/** The pin of a clone on real servers: where it may be, and how long it moves. */
import type { CloneError } from '@pgcloned/contract';
import { openSession, resolveConnection } from '@pgcloned/postgres';
import { connectSsh } from '@pgcloned/ssh';
import { type Source, startSource, startStandbyOf } from '@pgcloned/testbed';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { withCleanup } from '../src/cleanup.ts';
import type { CloneRun } from '../src/clone-run.ts';
import { holdPin } from '../src/held-pin.ts';
import { pinIfPossible } from '../src/phases/stream-wal.ts';
import type { Ready } from '../src/ready.ts';

const { signal } = new AbortController();
const owned = new AsyncDisposableStack();
let source: Source;

beforeAll(async () => {
  source = owned.use(await startSource());
});

afterAll(async () => {
  await owned.disposeAsync();
});

async function settingsOf({ configuration }: Pick<Source, 'configuration'>) {
  return await resolveConnection({ ...configuration, sslmode: 'disable', sslRootCertFile: null });
}

test('a pin on another server than the backup is refused, and nothing stays of it', async () => {
  await using other = await startStandbyOf(source);
  const settings = await settingsOf(source);
  await using session = await openSession(await settingsOf(other), {
    applicationName: 'backup',
    signal,
  });
  await using ssh = await connectSsh(source.sshd.target, { signal });
  const ready = {
    ...{ settings, session, host: { ssh: () => ssh }, data: { final: '/nowhere' } },
    facts: { dataDirectory: source.primary.dataDirectory },
  } as unknown as Ready;

  const failure = await withCleanup(
    async (cleanup) => {
      const observer = { log: () => {} };
      const run = { name: 'pgcloned_pin', signal, cleanup, observer, warn: () => {} };
      await pinIfPossible(run as unknown as CloneRun, ready);
    },
    () => {},
  ).catch((error: unknown) => error as CloneError);

  expect(failure).toMatchObject({ code: 'SOURCE_MISMATCH', facts: { missing: 'pgcloned_pin' } });
  expect(await source.primary.query('SELECT FROM pg_replication_slots')).toEqual([]);
});

test('a pin stays where the stream has ended, since the replica asks for the last segment once more', async () => {
  const { primary } = source;
  const restartLsn = async () =>
    await primary.query('SELECT restart_lsn::text AS lsn FROM pg_replication_slots');
  const nextSegment = async () => {
    await primary.query(`SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()`);
    const [row] = await primary.query<{ lsn: string }>('SELECT pg_current_wal_lsn()::text AS lsn');
    return row?.lsn ?? '';
  };
  const observer = { log: () => {} } as unknown as CloneRun['observer'];
  const run = { name: 'pgcloned_stays', signal, observer, warn: () => {} };
  const pin = await holdPin(run, await settingsOf(source));
  const complete = await nextSegment();
  await pin.advance(complete);
  const before = await restartLsn();

  pin.streamEnded(complete);
  await pin.advance(await nextSegment());

  expect(await restartLsn()).toEqual(before);
  expect(before).toEqual([{ lsn: complete }]);
  await pin.release();
});
