/** A clone's record as text: one row in a table, or everything a person asks about one. */
import type { Clone } from '@pgcloned/client';
import { formatBytes, nameOfSource } from '@pgcloned/contract';
import { describeCopy, fractionDone } from './progress/describe.ts';
import { formatResult } from './summary.ts';
import { formatRows, formatTable } from './table.ts';

export function formatCloneTable(clones: readonly Clone[]): string {
  return formatTable(
    ['ID', 'SOURCE', 'HOST', 'DATA DIRECTORY', 'STATE', 'PHASE', 'DONE', 'REPLICA', 'CREATED'],
    clones.map((clone) => [
      clone.id,
      nameOfSource(clone.spec.source),
      clone.host,
      clone.spec.target.dataDirectory,
      stateOf(clone),
      clone.state === 'running' ? (clone.phase ?? '') : '',
      clone.progress.bytesTotal === 0
        ? ''
        : `${String(Math.floor(fractionDone(clone.progress) * 100))} %`,
      replicaOf(clone.instance),
      clone.createdAt,
    ]),
  );
}

/** Without what takes room in a row; nothing where nothing of it lies on its host. */
function replicaOf({ state, port }: Clone['instance']): string {
  if (state === 'absent') return '';
  return state === 'running' && port !== null ? `port ${String(port)}` : state;
}

export function formatClone(clone: Clone): string {
  const { spec, progress, error } = clone;
  return [
    `clone ${clone.id}`,
    ...formatRows([
      ['state', stateOf(clone)],
      ['phase', clone.phase],
      ['waiting for', clone.waitingFor],
      ['source', nameOfSource(spec.source)],
      ['host', clone.host],
      ['data directory', spec.target.dataDirectory],
      ['attempt', String(clone.attempt)],
      ['created', clone.createdAt],
      ['started', clone.startedAt],
      ['ended', clone.endedAt],
      ['transfer', formatLimits(clone)],
      ['copy', progress.bytesTotal === 0 ? null : describeCopy(progress)],
      [
        'labels',
        Object.entries(spec.labels)
          .map(([name, value]) => `${name}=${value}`)
          .join(' '),
      ],
      ['error', error === null ? null : `${error.code}: ${error.message}`],
      ['hint', error === null ? null : error.hint],
    ]),
    ...formatResult(clone),
  ].join('\n');
}

/** In the words of `clone change`. */
export function formatLimits({ spec: { transfer } }: Clone): string {
  const workers = transfer.workers ?? 'auto';
  const maxRate = transfer.maxRate === null ? 'none' : `${formatBytes(transfer.maxRate)}/s`;
  return `workers ${String(workers)}, max rate ${maxRate}`;
}

function stateOf({ state, contact }: Clone): string {
  return contact === 'lost' ? `${state} (contact lost)` : state;
}
