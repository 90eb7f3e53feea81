/**
 * Tables of one row a page, and writes into an exact share of their pages, scattered at random: what a later copy finds
 * changed is known to the page.
 */
import type { PostgresServer } from './postgres-server.ts';

const TABLE_PREFIX = 'scattered_';
/** Its next version finds room beside it, and a second row does not. */
const ROW = `repeat(md5(random()::text), 55)`;
const FILLFACTOR = 30;
const PAGE_BYTES = 8192;

/** @param megabytes Of each table. */
export async function createScattered(
  { query }: PostgresServer,
  megabytes: readonly number[],
): Promise<void> {
  for (const [index, size] of megabytes.entries()) {
    const name = `${TABLE_PREFIX}${String(index)}`;
    const rows = Math.round((size * 1e6) / PAGE_BYTES);
    await query(
      `CREATE TABLE ${name} (page int, filler text) WITH (fillfactor = ${String(FILLFACTOR)})`,
    );
    await query(`INSERT INTO ${name} SELECT g, ${ROW} FROM generate_series(1, ${String(rows)}) g`);
    // Otherwise the first look at a page would write it.
    await query(`VACUUM (FREEZE) ${name}`);
  }
  await query('CHECKPOINT');
}

/** Writes this share of the pages of each table. */
export async function writeScattered({ query }: PostgresServer, share: number): Promise<void> {
  const tables = await query<{ name: string }>(
    `SELECT relname AS name FROM pg_class WHERE relname LIKE '${TABLE_PREFIX}%' AND relkind = 'r'`,
  );
  for (const { name } of tables) {
    await query(`
      UPDATE ${name} SET filler = ${ROW} WHERE page IN (
        SELECT page FROM ${name} ORDER BY random()
        LIMIT (SELECT ceil(count(*) * ${String(share)}) FROM ${name}))`);
    // Otherwise the next look at these pages would write them again, after what is copied meanwhile.
    await query(`VACUUM (FREEZE) ${name}`);
  }
}
