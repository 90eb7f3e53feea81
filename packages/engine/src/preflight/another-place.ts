/**
 * Another directory where the one that was asked for cannot be had: below a data root, and one that does not exist. What
 * lies in the one that was asked for is never offered to be removed.
 */
import { userInfo } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { CloneError, changeRequest, type ErrorCode, type Remedy } from '@pgcloned/contract';
import { isWithin, quoteForShell } from '@pgcloned/process';
import type { ClonePlan } from '../plan.ts';
import { exists } from '../target/marker.ts';
import { filesystemOf } from '../target/space.ts';
import type { Seen } from './check.ts';

const WRONG_PLACE: readonly ErrorCode[] = [
  'TARGET_INVALID',
  'TARGET_IN_USE',
  'TARGET_NOT_EMPTY',
  'TARGET_OTHER_CLUSTER',
  'TARGET_OUTSIDE_DATA_ROOTS',
];

/** `error` with what mends it, where another place does, or another owner. */
export async function offerPlace(
  error: unknown,
  o: {
    /** What was asked for. */
    readonly asked: string;
    /** Where it would fit better, if that is free. */
    readonly preferred: string;
    readonly dataRoots: readonly string[] | null;
    /** The part of the request that names the other place. */
    readonly asRequest: (path: string) => object;
  },
): Promise<unknown> {
  if (!(error instanceof CloneError) || error.remedies.length > 0) return error;
  const remedies = WRONG_PLACE.includes(error.code)
    ? [changeRequest(o.asRequest(await anotherPlace(o)))]
    : await ownership(error, o.dataRoots);
  return withRemedies(error, remedies);
}

/**
 * A shortage with another data root that has the room, where it is the data directory that needs it. Tablespaces have places
 * of their own, which somebody has thought about, and what shares blocks with the source stays where they are.
 */
export async function offerRoom(
  shortage: CloneError,
  { spec, host: { dataRoots } }: Pick<ClonePlan, 'spec' | 'host'>,
  {
    claim: { data },
    facts: { walSegmentBytes },
    tablespaces,
  }: Pick<Seen, 'claim' | 'facts' | 'tablespaces'>,
): Promise<CloneError> {
  const { path, neededBytes, reserveBytes } = shortage.facts;
  const home = await filesystemOf(data.build, walSegmentBytes);
  const isFree = spec.method !== 'reflink' && tablespaces.length === 0;
  if (dataRoots === null || !isFree || path !== home.path) return shortage;
  for (const root of dataRoots) {
    const other = await filesystemOf(root, walSegmentBytes);
    const roomBytes = other.freeBytes - other.reserveBytes;
    if (other.device === home.device || roomBytes < Number(neededBytes) - Number(reserveBytes))
      continue;
    const asked = data.final;
    const dataDirectory = await anotherPlace({ asked, preferred: asked, dataRoots: [root] });
    return withRemedies(shortage, [changeRequest({ target: { dataDirectory } })]);
  }
  return shortage;
}

export function withRemedies(error: CloneError, remedies: readonly Remedy[]): CloneError {
  if (remedies.length === 0) return error;
  return new CloneError(error.code, error.message, {
    facts: error.facts,
    ...(error.hint !== null && { hint: error.hint }),
    remedies,
    cause: error.cause,
  });
}

async function anotherPlace({
  asked,
  preferred,
  dataRoots,
}: {
  readonly asked: string;
  readonly preferred: string;
  readonly dataRoots: readonly string[] | null;
}): Promise<string> {
  const isInside =
    dataRoots === null || dataRoots.some((root) => isWithin(dirname(preferred), root));
  const wanted = isInside
    ? preferred
    : join(dataRoots[0] ?? '/', basename(dirname(preferred)), basename(preferred));
  const candidates = [
    ...(wanted === asked ? [] : [wanted]),
    `${wanted}-clone`,
    ...Array.from({ length: NUMBERS_TRIED }, (_, index) => `${wanted}-clone-${String(index + 2)}`),
  ];
  for (const candidate of candidates)
    if (!(await exists(candidate).catch(() => true))) return candidate;
  return wanted;
}

/** Whoever has so many clones beside each other finds a name himself. */
const NUMBERS_TRIED = 100;

/** What lies above the target may be everybody's, such as /srv: of that only what the data roots allow becomes ours. */
async function ownership(
  { code, facts: { path, directory, readOnlyFilesystem } }: CloneError,
  dataRoots: readonly string[] | null,
): Promise<readonly Remedy[]> {
  if (code !== 'TARGET_NOT_WRITABLE' || readOnlyFilesystem === true) return [];
  if (typeof path !== 'string' || typeof directory !== 'string') return [];
  const owner = quoteForShell(userInfo().username);
  const asRoot = (text: string): readonly Remedy[] => [
    { kind: 'shell', on: 'host', where: 'root', text },
  ];
  if (!(await exists(path))) return asRoot(`install -d -o ${owner} -m 0700 ${quoteForShell(path)}`);
  const isAbove = directory === dirname(path);
  const isAllowed = dataRoots?.some((root) => isWithin(directory, root)) ?? false;
  return isAbove && !isAllowed ? [] : asRoot(`chown ${owner} ${quoteForShell(directory)}`);
}
