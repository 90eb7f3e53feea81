/**
 * Starting and stopping the server of a clone that has ended. Under the lock of its data directory, so that no clone that
 * is about to replace it meets a server that starts.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import {
  effectiveSettings,
  findBinDirectory,
  isServerRunning,
  stopServer,
} from '@pgcloned/postgres';
import { refuseTablespacesSince } from '../replica/beside-source.ts';
import { isToSettle, settleDetached, settleOncePromoted } from '../replica/detached.ts';
import { findHostConfiguration } from '../replica/host-configuration.ts';
import { startReplicaServer } from '../replica/start-server.ts';
import { explainFilesystemFailure } from '../target/filesystem-failure.ts';
import { makeLockSet } from '../target/locks.ts';
import { exists, isPublished } from '../target/marker.ts';
import { hasReservedPort, reserveAgain } from '../target/ports.ts';
import { refuseIfTooLarge } from '../target/space.ts';
import { cloneIn, guardedDataDirectory, type InstancePlan, instanceChanged } from './look.ts';

/**
 * Settles once the postmaster lives, and takes writes if the clone is a detached one that was never started; nothing to do if
 * it does already.
 *
 * @throws {CloneError} `INSTANCE_CHANGED`, `INSTANCE_MISSING` for an unfinished copy, `TARGET_BUSY`, `TARGET_NO_SPACE`,
 *   `SOURCE_CHANGED` for a standby that would share a tablespace with its source, and what starting throws.
 */
export async function startInstance(plan: InstancePlan, signal: AbortSignal): Promise<void> {
  await underLock(plan, signal, async (dataDirectory) => {
    try {
      if ((await isServerRunning(dataDirectory)) === null) {
        await refuseTablespacesSince(dataDirectory, signal);
        const major = await majorOf(dataDirectory);
        await startReplicaServer({
          host: plan.host,
          binDirectory: await findBinDirectory(plan.host.postgresBin, major, signal),
          dataDirectory,
          configFile: await configFileOf(plan, dataDirectory, major),
          major,
          signal,
        });
      }
      await settleOncePromoted(dataDirectory, { stallMs: plan.host.stallMs, signal });
    } catch (error) {
      signal.throwIfAborted();
      throw await explainFilesystemFailure(error, {
        directories: [dataDirectory, ...plan.filled.map(({ final }) => final)],
        next: 'start it again',
      });
    }
  });
}

/**
 * What brought a detached clone to its promotion goes once that is over, also if whoever started it has died or is somebody
 * else. Waits for nothing.
 *
 * @throws {CloneError} As `startInstance`.
 */
export async function settleInstance(plan: InstancePlan, signal: AbortSignal): Promise<void> {
  if (!(await isToSettle(await guardedDataDirectory(plan), signal))) return;
  await underLock(plan, signal, async (dataDirectory) => {
    if (await isToSettle(dataDirectory, signal)) await settleDetached(dataDirectory);
  });
}

/**
 * A fast shutdown, and an immediate one if that does not come to its end. Nothing to do if no server runs.
 *
 * @throws {CloneError} `INSTANCE_CHANGED`, `INSTANCE_MISSING`, `TARGET_BUSY`, `PROCESS_FAILED`.
 */
export async function stopInstance(plan: InstancePlan, signal: AbortSignal): Promise<void> {
  await underLock(plan, signal, async (dataDirectory) => {
    const binDirectory = await binDirectoryOf(plan, dataDirectory, signal);
    await stopServer({ binDirectory, dataDirectory, signal, fastMsMax: plan.host.stallMs });
  });
}

/**
 * The port of a clone that is there, kept from others: where no clone is being made, as before the first one after a restart
 * of the host. Nothing to do for a port that nobody would be given.
 *
 * @throws {CloneError} If its configuration cannot be read.
 */
export async function keepPort(plan: InstancePlan, signal: AbortSignal): Promise<void> {
  const dataDirectory = await guardedDataDirectory(plan);
  if (!(await isPublished(dataDirectory, plan.id)) || (await hasReservedPort(dataDirectory)))
    return;
  const port = await portOf(plan, dataDirectory, signal);
  const { first, last } = plan.host.ports;
  if (port >= first && port <= last) await reserveAgain(plan.id, { dataDirectory, port, signal });
}

/** What a clone that is reset had, for the one that takes its place. */
export interface GivenWay {
  /** Null: nothing is there any more. */
  readonly port: number | null;
}

/**
 * Stops the server of a clone whose place another one is about to take. Nothing to do if its directory is gone.
 *
 * @param o.beforeStop If a server runs: it goes on until this has settled.
 * @throws {CloneError} As `stopInstance`: what is not this clone must not be replaced in its name. `TARGET_NO_SPACE`, and then
 *   its server runs on.
 */
export async function giveWay(
  plan: InstancePlan,
  {
    beforeStop,
    signal,
  }: { readonly beforeStop: () => Promise<void>; readonly signal: AbortSignal },
): Promise<GivenWay> {
  if (!(await exists(await guardedDataDirectory(plan)))) return { port: null };
  let given: GivenWay = { port: null };
  await underLock(plan, signal, async (dataDirectory) => {
    // What takes its place would be refused, and a server that has ended may not come up again on a full disk.
    await refuseIfTooLarge([{ path: dataDirectory, bytes: 0 }], 0);
    given = { port: await portOf(plan, dataDirectory, signal) };
    const binDirectory = await binDirectoryOf(plan, dataDirectory, signal);
    if ((await isServerRunning(dataDirectory)) !== null) await beforeStop();
    await stopServer({ binDirectory, dataDirectory, signal, fastMsMax: plan.host.stallMs });
  });
  return given;
}

/** By its configuration. */
async function portOf(
  plan: InstancePlan,
  dataDirectory: string,
  signal: AbortSignal,
): Promise<number> {
  const major = await majorOf(dataDirectory);
  const { port } = await effectiveSettings({
    binDirectory: await binDirectoryOf(plan, dataDirectory, signal),
    dataDirectory,
    configFile: await configFileOf(plan, dataDirectory, major),
    names: ['port'],
    signal,
  });
  return Number(port);
}

async function configFileOf(
  { spec }: InstancePlan,
  dataDirectory: string,
  major: number,
): Promise<string | null> {
  return spec.replica.configuration === 'source'
    ? null
    : await findHostConfiguration(dataDirectory, major);
}

/** The programs of the version that the directory is of. */
export async function binDirectoryOf(
  { host }: Pick<InstancePlan, 'host'>,
  dataDirectory: string,
  signal: AbortSignal,
): Promise<string> {
  return await findBinDirectory(host.postgresBin, await majorOf(dataDirectory), signal);
}

async function underLock(
  plan: InstancePlan,
  signal: AbortSignal,
  work: (dataDirectory: string) => Promise<void>,
): Promise<void> {
  const dataDirectory = await guardedDataDirectory(plan);
  await using locks = makeLockSet(plan.id, { ofInstance: true });
  await locks.take([dataDirectory], signal);
  const found = await cloneIn(dataDirectory);
  if (found !== plan.id) throw instanceChanged(dataDirectory, { id: plan.id, found });
  if (!(await isPublished(dataDirectory, plan.id))) {
    throw new CloneError('INSTANCE_MISSING', `${dataDirectory} holds an unfinished copy`, {
      facts: { dataDirectory },
      hint: 'It cannot be started. Clone into the directory again, which builds upon it, or delete it.',
    });
  }
  await work(dataDirectory);
}

async function majorOf(dataDirectory: string): Promise<number> {
  return Number(await readFile(join(dataDirectory, 'PG_VERSION'), 'utf8'));
}
