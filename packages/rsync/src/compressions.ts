/** Which compressions an rsync knows. Those of other programs than rsync, and of before 3.2.0, name none. */
import { COMPRESSIONS, type Compression } from '@pgcloned/contract';

/** @param list `zstd lz4 zlibx zlib none`: the line below `Compress list:` of `rsync --version`. */
export function compressionsIn(list: string): readonly Compression[] {
  const known = list.trim().split(/\s+/);
  return COMPRESSIONS.filter(
    (compression) => compression === 'none' || known.includes(compression),
  );
}
