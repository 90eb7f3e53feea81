/**
 * What somebody wishes for the instance of a clone, as it stands beside the record in Redis, and what of it is refused at
 * once. The worker that carries it out looks again.
 */
import {
  type Clone,
  CloneError,
  expiryAfter,
  hasEnded,
  hasFiles,
  type Instance,
  InstanceWish,
} from '@pgcloned/contract';
import { parsedJson } from './parsed-json.ts';

/** The same text for the same wish. */
export function formatInstanceWish(wish: InstanceWish): string {
  const entries = Object.entries(wish).filter(([, value]) => value !== undefined);
  return JSON.stringify(Object.fromEntries(entries.toSorted(([a], [b]) => (a < b ? -1 : 1))));
}

/** @returns Null if there is none, or none that can be understood: the instance stays as it is. */
export function parseInstanceWish(text: string | null | undefined): InstanceWish | null {
  if (text === null || text === undefined || text === '') return null;
  return InstanceWish.safeParse(parsedJson(text)).data ?? null;
}

/** The instance as it will be, and what it waits for until then; null: for nothing. */
export function withWish(
  instance: Instance,
  wish: InstanceWish | null,
): { readonly instance: Instance; readonly waitsTo: string | null } {
  if (wish === null) return { instance, waitsTo: null };
  const { ttl, askedAt, remove, server } = wish;
  return {
    instance: {
      ...instance,
      state: remove === true && instance.state !== 'removed' ? 'removing' : instance.state,
      protected: wish.protected ?? instance.protected,
      ...(ttl !== undefined && {
        expiresAt: ttl === null ? null : expiryAfter(ttl, Date.parse(askedAt ?? '')),
      }),
    },
    waitsTo: waitsTo({ remove, server }),
  };
}

function waitsTo({ remove, server }: Pick<InstanceWish, 'remove' | 'server'>): string {
  if (remove === true) return 'to remove the files of the clone';
  if (server === 'running') return 'to start the server of the clone';
  if (server === 'stopped') return 'to stop the server of the clone';
  return 'to take up the change';
}

/**
 * @param clone As callers see it.
 * @returns Whether there is anything to be done.
 * @throws {CloneError} `CLONE_NOT_ENDED`, `CLONE_PROTECTED`, `INSTANCE_MISSING`.
 */
export function admitInstanceWish({ state, instance }: Clone, wish: InstanceWish): boolean {
  if (!hasEnded(state)) {
    if (wish.server === undefined && wish.ttl === undefined && wish.remove === undefined)
      return true;
    throw new CloneError('CLONE_NOT_ENDED', 'the clone has not ended', {
      facts: { state },
      hint: 'Wait until it has ended, or cancel it first.',
    });
  }
  if (wish.remove === true) {
    refuseProtected(instance);
    // Nothing of a cancelled clone is anywhere. Where it is only believed to be absent the worker looks again.
    return state !== 'cancelled' && instance.state !== 'removed';
  }
  const fits =
    instance.state === 'running' ||
    instance.state === 'stopped' ||
    (instance.state === 'unfinished' && wish.server === undefined);
  if (fits) return true;
  throw new CloneError(
    'INSTANCE_MISSING',
    instance.state === 'unfinished'
      ? 'the copy is unfinished and cannot be started'
      : `the instance of the clone is ${instance.state}`,
    {
      facts: { instanceState: instance.state },
      hint: 'Look at `instance` of the clone, and ask for a new clone if this one is gone.',
    },
  );
}

/**
 * Whether the record may be forgotten: what it says of the files must stay true without it.
 *
 * @throws {CloneError} `CLONE_PROTECTED`, `CLONE_EXPIRES`.
 */
export function admitForgetting({ instance }: Clone): void {
  if (!hasFiles(instance)) return;
  refuseProtected(instance);
  const { state, expiresAt } = instance;
  if (state !== 'removing' && expiresAt === null) return;
  throw new CloneError(
    'CLONE_EXPIRES',
    state === 'removing'
      ? 'the files of the clone are being removed'
      : `the files of the clone will be removed at ${expiresAt ?? ''}`,
    {
      facts: { instanceState: state, expiresAt },
      hint:
        state === 'removing'
          ? 'Delete it again once `instance.state` is removed.'
          : 'Delete it with data=true to remove them now, or extend it with ttl null to keep them.',
    },
  );
}

/**
 * Force is for a clone whose host does not come back. One that is protected stays known as long as its host can say so.
 *
 * @throws {CloneError} `CLONE_PROTECTED`.
 */
export function admitForcedForgetting(
  { state, instance }: Clone,
  { isOnline }: { readonly isOnline: boolean },
): void {
  if (isOnline && (!hasEnded(state) || hasFiles(instance))) refuseProtected(instance);
}

function refuseProtected(instance: Instance): void {
  if (!instance.protected) return;
  throw new CloneError('CLONE_PROTECTED', 'the clone is protected', {
    hint: 'Take the protection back first: PATCH the clone with {"protected": false}, or `pgcloned clone change --no-protect ID`.',
  });
}
