/** The cluster that the benchmarks copy: half of it in one table, half in small ones. */
import type { PostgresServer } from '@pgcloned/testbed';

const SMALL_TABLES_PER_GB = 750;

/** How many of a row's 30 pieces of 32 random hexadecimal digits are its own; the others repeat one of them. */
const PIECES_OF_ITS_OWN = 11;
const PIECES = 30;

/** Compresses to about a fifth, as many tables do: keys, hashes and times beside words that come again and again. */
export async function fillCluster(primary: PostgresServer, gigabytes: number): Promise<void> {
  const tables = Math.round(gigabytes * SMALL_TABLES_PER_GB);
  const own = Array.from(
    { length: PIECES_OF_ITS_OWN },
    (_, piece) => `md5((${String(PIECES)} * g + ${String(piece)})::text)`,
  ).join(' || ');
  const filler = `${own} || repeat(md5((${String(PIECES)} * g)::text), ${String(PIECES - PIECES_OF_ITS_OWN)})`;
  // A kilobyte each: a heap of 0.7 MB with its index, its free space map and a TOAST table are five files.
  await primary.query(`
    DO $$ BEGIN
      FOR i IN 1..${String(tables)} LOOP
        EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, filler text)', i);
        EXECUTE format('INSERT INTO small_%s SELECT g, ${filler} FROM generate_series(1, 600) g', i);
        IF i % 100 = 0 THEN COMMIT; END IF;
      END LOOP;
    END $$`);
  const rows = Math.round(gigabytes * 450_000);
  await primary.query(
    `CREATE TABLE large AS SELECT g, ${filler} FROM generate_series(1, ${String(rows)}) g`,
  );
  await primary.query('CHECKPOINT');
  const [size] = await primary.query<{ gigabytes: string; files: string }>(
    `select round(sum(pg_database_size(oid)) / 1e9, 2) as gigabytes,
            (select count(*) from pg_class where relfilenode <> 0) as files from pg_database`,
  );
  console.log(`${size?.gigabytes ?? ''} GB in some ${size?.files ?? ''} relations`);
}
