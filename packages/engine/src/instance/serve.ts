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
import { settleOncePromoted } from '../replica/detached.ts';
import { findHostConfiguration } from '../replica/host-configuration.ts';
import { startReplicaServer } from '../replica/start-server.ts';
import { makeLockSet } from '../target/locks.ts';
import { exists, isPublished } from '../target/marker.ts';
import { cloneIn, guardedDataDirectory, type InstancePlan, instanceChanged } from './look.ts';

/**
 * Settles once the postmaster lives, and takes writes if the clone is a detached one that was never started; nothing to do if
 * it does already.
 *
 * @throws {CloneError} `INSTANCE_CHANGED`, `INSTANCE_MISSING` for an unfinished copy, `TARGET_BUSY`, `SOURCE_CHANGED` for a standby that
 *   would share a tablespace with its source, and what starting throws.
 */
export async function startInstance(plan: InstancePlan, signal: AbortSignal): Promise<void> {
  await underLock(plan, signal, async (dataDirectory) => {
    if ((await isServerRunning(dataDirectory)) !== null) return;
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
    await settleOncePromoted(dataDirectory, { stallMs: plan.host.stallMs, signal });
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

/** What a clone that is reset had, for the one that takes its place. */
export interface GivenWay {
  /** Null: nothing is there any more. */
  readonly port: number | null;
  readonly wasRunning: boolean;
}

/**
 * Stops the server of a clone whose place another one is about to take. Nothing to do if its directory is gone.
 *
 * @throws {CloneError} As `stopInstance`: what is not this clone must not be replaced in its name.
 */
export async function giveWay(plan: InstancePlan, signal: AbortSignal): Promise<GivenWay> {
  if (!(await exists(await guardedDataDirectory(plan)))) return { port: null, wasRunning: false };
  let given: GivenWay = { port: null, wasRunning: false };
  await underLock(plan, signal, async (dataDirectory) => {
    const major = await majorOf(dataDirectory);
    const binDirectory = await findBinDirectory(plan.host.postgresBin, major, signal);
    const { port } = await effectiveSettings({
      binDirectory,
      dataDirectory,
      configFile: await configFileOf(plan, dataDirectory, major),
      names: ['port'],
      signal,
    });
    given = { port: Number(port), wasRunning: (await isServerRunning(dataDirectory)) !== null };
    await stopServer({ binDirectory, dataDirectory, signal, fastMsMax: plan.host.stallMs });
  });
  return given;
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
  await using locks = makeLockSet(plan.id);
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
