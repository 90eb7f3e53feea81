/** The last lines about a clone: what was made, what it cost, what to mind. */
import { type CloneResult, formatBytes, type Instance, type Leftover } from '@pgcloned/contract';
import { quoteForShell } from '@pgcloned/process';
import { formatDuration } from './progress/describe.ts';
import { formatRows } from './table.ts';

interface Outcome {
  readonly result: CloneResult | null;
  readonly instance: Instance;
  readonly leftovers: readonly Leftover[];
}

export function formatSummary({
  sourceName,
  result,
  instance,
  leftovers,
}: Outcome & { readonly sourceName: string; readonly result: CloneResult }): string {
  return [
    `clone of ${sourceName} is ready in ${result.dataDirectory}`,
    ...formatResult({ result, instance, leftovers }),
  ].join('\n');
}

export function formatResult({ result, instance, leftovers }: Outcome): readonly string[] {
  return [
    ...(result === null ? [] : formatTotals(result)),
    ...formatRows([
      ['replica', describeInstance(instance)],
      ['connect', howToConnect({ result, instance })],
      ['space', describeSpace(instance)],
      ['trouble', instance.error === null ? null : instance.error.message],
      ['hint', instance.error === null ? null : instance.error.hint],
    ]),
    ...formatRows((result?.warnings ?? []).map((warning) => ['warning', warning])),
    ...formatLeftovers(leftovers),
  ];
}

function formatTotals(result: CloneResult): readonly string[] {
  const { bytes, files, wireBytes, keptBytes, compression, durationMs } = result;
  const { startLsn, stopLsn, timeline } = result;
  const by = compression === null || compression === 'none' ? '' : `, compressed by ${compression}`;
  const rate = durationMs === 0 ? 0 : Math.round((bytes * 1000) / durationMs);
  // By reflinks nothing is.
  const isSent = wireBytes > 0;
  return formatRows([
    [isSent ? 'copied' : 'cloned', `${formatBytes(bytes)} in ${String(files)} files`],
    ...(isSent ? [['over the wire', `${formatBytes(wireBytes)}${by}`] as const] : []),
    ...(keptBytes === 0
      ? []
      : [['kept', `${formatBytes(keptBytes)} of an earlier attempt`] as const]),
    ['duration', `${formatDuration(durationMs)}${isSent ? ` (${formatBytes(rate)}/s)` : ''}`],
    ['WAL', `${startLsn} to ${stopLsn}, timeline ${String(timeline)}`],
    ['system', result.systemIdentifier],
    [
      'verification',
      Object.entries(result.verification)
        .map(([what, verdict]) => `${what} ${verdict}`)
        .join(', '),
    ],
  ]);
}

export function describeInstance({
  state,
  port,
  expiresAt,
  protected: isProtected,
}: Instance): string {
  return [
    state === 'running' && port !== null ? `running on port ${String(port)}` : state,
    ...(expiresAt === null || state === 'removed' ? [] : [`until ${expiresAt}`]),
    ...(isProtected ? ['protected'] : []),
  ].join(', ');
}

/** The command, on the host and as the user that owns the files. */
function howToConnect({ result, instance }: Pick<Outcome, 'result' | 'instance'>): string | null {
  const address = result?.connectionString ?? null;
  if (address === null || instance.state !== 'running') return null;
  return `psql ${quoteForShell(address)}`;
}

function describeSpace({ space }: Instance): string | null {
  if (space === null) return null;
  return `${formatBytes(space.ownBytes)} of its own, ${formatBytes(space.sharedBytes)} shared`;
}

/** What could not be undone, each with the command that removes it. */
export function formatLeftovers(leftovers: readonly Leftover[]): readonly string[] {
  return formatRows(
    leftovers.map(({ what, remedy }) => ['left behind', `${what}; remove it with: ${remedy}`]),
  );
}
