/** What rsync prints on standard output in the locale C: `--info=progress2,stats2 --no-human-readable`, `WIRE_FORMAT`. */

/** `     31457282  33%   41.04MB/s    0:00:00 (xfr#3, to-chk=4/8)`: the first number are bytes of files so far. R6.12. */
const PROGRESS = /^ *(\d+) +\d+% /;

/** @returns The bytes of files fetched so far, or null if the line is something else. */
export function readProgress(line: string): number | null {
  const bytes = PROGRESS.exec(line)?.[1];
  return bytes === undefined ? null : Number(bytes);
}

/** What `--out-format` prints when a file is complete: what was received for it. */
export const WIRE_FORMAT = 'wire %b';

/** @returns What was received for the file that is complete now, or null if the line is something else. */
export function readWireBytes(line: string): number | null {
  const bytes = /^wire (\d+)$/.exec(line)?.[1];
  return bytes === undefined ? null : Number(bytes);
}

/** Sums of a finished transfer. Lines that are missing count as 0: an aborted one prints none. */
export function readStatistics(lines: readonly string[]): {
  readonly bytes: number;
  readonly literalBytes: number;
  readonly wireBytes: number;
} {
  const value = (label: string) => {
    const line = lines.find((candidate) => candidate.startsWith(`${label}: `));
    return Number(/\d+/.exec(line ?? '')?.[0] ?? 0);
  };
  return {
    bytes: value('Total transferred file size'),
    literalBytes: value('Literal data'),
    wireBytes: value('Total bytes sent') + value('Total bytes received'),
  };
}
