/** Where the clone will listen: as asked, as the configuration of the host says, or where nobody else does (R9.6). */
import { CloneError, changeRequest } from '@pgcloned/contract';
import type { CloneRun } from '../clone-run.ts';
import type { Seen } from '../preflight/check.ts';
import { isFree, lookForPort, type PickOptions } from '../target/ports.ts';
import { isDetached } from './detached.ts';
import { configuredSettings } from './required-settings.ts';

/** @throws {CloneError} `TARGET_INVALID` if it is taken, or if all of `worker.ports` are. */
export async function choosePort(
  run: CloneRun,
  seen: Pick<Seen, 'claim' | 'facts' | 'binDirectory' | 'hostConfiguration' | 'sameHost'>,
): Promise<Pick<Seen, 'port'>> {
  const { plan, signal } = run;
  const { replica } = plan.spec;
  const options: PickOptions = { dataDirectory: seen.claim.data.final, signal };
  const asked = replica.port ?? replica.settings.port;
  if (asked !== undefined) {
    const port = Number(asked);
    // Whose port it is else does not matter: it was asked for. But nobody else shall be given it.
    await run.port.pick({ first: port, last: port }, { ...options, isAsked: true });
    if (replica.start) await refuseTaken(run, seen, port);
    return { port };
  }
  if (seen.hostConfiguration === null && (seen.sameHost || isDetached(plan))) {
    const { first, last } = plan.host.ports;
    const port = await run.port.pick(plan.host.ports, options);
    if (port !== null) return { port };
    throw new CloneError('TARGET_INVALID', 'no port is free for the clone', {
      facts: { firstPort: first, lastPort: last },
      hint: 'Remove clones that are no longer needed, widen worker.ports, or choose replica.port.',
    });
  }
  if (replica.start) {
    const { port } = await configuredSettings(seen, ['port'], signal);
    await refuseTaken(run, seen, Number(port));
  }
  return { port: null };
}

async function refuseTaken(
  { plan, signal }: CloneRun,
  { claim }: Pick<Seen, 'claim'>,
  port: number,
): Promise<void> {
  if (await isFree(port)) return;
  const free = await lookForPort(plan.id).pick(plan.host.ports, {
    dataDirectory: claim.data.final,
    signal,
  });
  throw new CloneError('TARGET_INVALID', `port ${String(port)} is taken on this host`, {
    facts: { port },
    hint: 'Choose another replica.port, or stop what listens there.',
    remedies: free === null ? [] : [changeRequest({ replica: { port: free } })],
  });
}
