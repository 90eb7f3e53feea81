/**
 * The file `tablespace_map`: which link in pg_tblspc leads where.
 *
 * One line per tablespace: its OID, exactly one space, the location; a backslash precedes every backslash, line feed and
 * carriage return of the location (R1.12). At its start the server replaces the links by what stands here, so a clone
 * whose tablespaces lie elsewhere needs its own map. Locations are names of files and may be any bytes: they are carried
 * as `latin1` strings, one character per byte.
 */

export interface TablespaceMapEntry {
  readonly oid: string;
  /** Any bytes but NUL, as `latin1`. */
  readonly location: string;
}

/** @throws {RangeError} If a line is not an entry. Maps come from PostgreSQL, so that is our bug. */
export function parseTablespaceMap(map: Buffer): readonly TablespaceMapEntry[] {
  const text = map.toString('latin1');
  // A line ends at a line feed that no backslash precedes; a pair of backslashes precedes nothing.
  const lines = text.match(/(?:\\.|[^\\\n])*\n/gs) ?? [];
  if (lines.join('') !== text) throw new RangeError('the last line of the map has no end');
  return lines.map((line) => {
    const [, oid, location] = /^(\d+) (.+)\n$/s.exec(line) ?? [];
    if (oid === undefined || location === undefined)
      throw new RangeError(`not a line of a tablespace map: ${line}`);
    return { oid, location: location.replace(/\\(.)/gs, '$1') };
  });
}

/** The bytes of the file; none for no tablespaces, and then no file is wanted either. */
export function formatTablespaceMap(entries: readonly TablespaceMapEntry[]): Buffer {
  const lines = entries.map(
    ({ oid, location }) => `${oid} ${location.replace(/[\\\n\r]/g, '\\$&')}\n`,
  );
  return Buffer.from(lines.join(''), 'latin1');
}
