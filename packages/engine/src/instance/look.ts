/**
 * What became of a clone after its end, told by looking and never by memory: it may have been started, stopped, moved or
 * replaced by whoever has the right to do so.
 */
import { CloneError, type CloneSpec, type Instance } from '@pgcloned/contract';
import { isServerRunning } from '@pgcloned/postgres';
import type { HostPolicy } from '../plan.ts';
import { guardPath, resolveReal } from '../target/guard.ts';
import { hasControlFile, isPublished, readMarker } from '../target/marker.ts';
import type { FilledDirectory } from '../target/prepare.ts';

/** A clone that has ended on this host. */
export interface InstancePlan {
  readonly id: string;
  readonly spec: Pick<CloneSpec, 'target' | 'replica'>;
  readonly host: HostPolicy;
  /** What it has filled, as the observer was told. */
  readonly filled: readonly FilledDirectory[];
}

type InstanceSeen = Pick<Instance, 'port'> & {
  readonly state: 'absent' | 'unfinished' | 'stopped' | 'running';
};

/** `absent` means that nothing of this very clone lies there, whatever else does. */
export async function lookAtInstance({
  id,
  spec,
}: Pick<InstancePlan, 'id' | 'spec'>): Promise<InstanceSeen> {
  const { real } = await resolveReal(spec.target.dataDirectory);
  if ((await cloneIn(real)) !== id) return { state: 'absent', port: null };
  if (!(await isPublished(real, id))) return { state: 'unfinished', port: null };
  const server = await isServerRunning(real);
  return server === null
    ? { state: 'stopped', port: null }
    : { state: 'running', port: server.port };
}

/**
 * The real path of the data directory. What lies there may be anything.
 *
 * @throws {CloneError} As `guardPath`: nothing else on this host is touched, whatever a record says.
 */
export async function guardedDataDirectory({ spec, host }: InstancePlan): Promise<string> {
  return await guardPath(spec.target.dataDirectory, host);
}

/**
 * The clone whose files lie in a data directory; null: those of nobody. A cluster that a clone was about to bring up to date
 * in place has its marker for a moment, and is still the cluster that it was: whatever can be started and was never finished
 * by us is somebody's.
 */
export async function cloneIn(dataDirectory: string): Promise<string | null> {
  const marker = await readMarker(dataDirectory, 'data');
  if (marker === null || (!marker.finished && (await hasControlFile(dataDirectory)))) return null;
  return marker.cloneId;
}

/** @param found As `cloneIn` says. */
export function instanceChanged(
  dataDirectory: string,
  { id, found }: { readonly id: string; readonly found: string | null },
): CloneError {
  return new CloneError(
    'INSTANCE_CHANGED',
    found === null
      ? `${dataDirectory} carries no marker of the clone`
      : `${dataDirectory} holds another clone by now`,
    {
      facts: { dataDirectory, clone: id, found },
      hint:
        found === null
          ? 'It was moved, copied or replaced by somebody. What lies there now is left alone: stop, start or remove it by hand.'
          : `Do it with clone ${found}, whose directory it is.`,
    },
  );
}
