/** Whether a clone is consistent, told by its files alone. */
import { copyFile, mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { scratchDirectory, startPrimary, startStandby } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { readRecovery } from '../src/replica/recovery.ts';

test('a clone whose recovery has not begun is not consistent, although the pg_control of a standby looks like it', async () => {
  await using primary = await startPrimary();
  await using standby = await startStandby(primary);
  await using clone = await scratchDirectory();
  const control = join('global', 'pg_control');
  const label = join(clone.path, 'backup_label');
  await mkdir(join(clone.path, 'global'));
  await copyFile(join(standby.dataDirectory, control), join(clone.path, control));
  await writeFile(label, '');

  const { signal } = new AbortController();
  expect(await readRecovery(clone.path, signal)).toMatchObject({ isConsistent: false });

  // The server puts it away when recovery has begun.
  await rm(label);
  expect(await readRecovery(clone.path, signal)).toMatchObject({ isConsistent: true });
});
