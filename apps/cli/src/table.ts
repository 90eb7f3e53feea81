/** Text in columns. */
import Table from 'cli-table3';

/** No lines between cells, so that `awk` and `cut` can read it too. */
const NO_BORDERS = {
  top: '',
  'top-mid': '',
  'top-left': '',
  'top-right': '',
  bottom: '',
  'bottom-mid': '',
  'bottom-left': '',
  'bottom-right': '',
  left: '',
  'left-mid': '',
  mid: '',
  'mid-mid': '',
  right: '',
  'right-mid': '',
  middle: '  ',
};

export function formatTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const table = new Table({
    head: [...head],
    chars: NO_BORDERS,
    style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
  });
  table.push(...rows.map((row) => [...row]));
  return table.toString().replaceAll(/ +$/gm, '');
}

/** Names and values below a heading; what has no value is left out. */
export function formatRows(
  rows: readonly (readonly [name: string, value: string | null])[],
): readonly string[] {
  return rows.flatMap(([name, value]) =>
    value === null || value === '' ? [] : [`  ${name.padEnd(15)}${value}`],
  );
}
