/** A preflight's report as text: the facts, then each finding with its commands on lines of their own. */
import { type Finding, formatBytes, type PreflightReport, type Remedy } from '@pgcloned/contract';
import { formatDuration } from './progress/describe.ts';
import { formatRows } from './table.ts';

export function formatReport({ ready, findings, notChecked, facts }: PreflightReport): string {
  const { source, host, estimate } = facts;
  return [
    ready ? 'ready: nothing stands against the clone' : 'not ready',
    ...formatRows([
      [
        'source',
        source === null
          ? null
          : `PostgreSQL ${source.version}, system ${source.systemIdentifier}, timeline ${String(source.timeline)}`,
      ],
      [
        'size',
        source === null || source.bytes === null
          ? null
          : `${formatBytes(source.bytes)}, tablespaces ${String(source.tablespaces.length)}`,
      ],
      ...host.filesystems.map(
        ({ path, freeBytes, neededBytes }) =>
          [
            'space',
            `${path}: ${formatBytes(freeBytes)} free, ${formatBytes(neededBytes)} needed`,
          ] as const,
      ),
      [
        'estimate',
        estimate === null
          ? null
          : `the copy takes about ${formatDuration(estimate.seconds * 1000)} at ${formatBytes(estimate.bytesPerSecond)}/s, measured with ${formatBytes(estimate.probedBytes)}`,
      ],
      ['not checked', notChecked.join(', ')],
    ]),
    ...findings.flatMap(formatFinding),
  ].join('\n');
}

function formatFinding({ severity, code, message, hint, remedies }: Finding): readonly string[] {
  return [
    '',
    `${severity}: ${message} [${code}]`,
    ...(hint === null ? [] : [`  ${hint}`]),
    ...remedies.flatMap((remedy) => [`  ${placeOf(remedy)}:`, `      ${remedy.text}`]),
  ];
}

const PLACES: Readonly<Record<Remedy['on'], string>> = {
  source: 'on the source',
  primary: 'on the primary of the source',
  host: 'on the target host',
  caller: 'here',
};

function placeOf({ kind, on, where }: Remedy): string {
  const place = PLACES[on];
  switch (kind) {
    case 'sql':
      return `${place}, as superuser in database ${where ?? 'postgres'}`;
    case 'shell':
      return where === null ? place : `${place}, as ${where}`;
    case 'prepend':
      return `${place}, as the first line of ${where ?? ''}`;
    case 'append':
      return `${place}, as the last line of ${where ?? ''}`;
    case 'request':
      return 'in the request';
  }
}
