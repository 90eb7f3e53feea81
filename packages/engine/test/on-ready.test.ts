/** Whoever can put another file in the place of one of `onReady` owns the clone, or sees what it should have masked. */
import { chmod, mkdir, mkdtemp, realpath, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { checkOnReadyFiles } from '../src/replica/on-ready.ts';

test('a file of onReady counts only if nobody else can change where its name leads', async () => {
  await using undo = new AsyncDisposableStack();
  // Not of another user, as that of the testbed is.
  const scratch = await realpath(await mkdtemp(join(tmpdir(), 'pgcloned-on-ready-')));
  undo.defer(async () => {
    await rm(scratch, { recursive: true });
  });
  const at = (...names: readonly string[]) => join(scratch, ...names);
  for (const name of ['safe', 'open', 'sticky']) await mkdir(at(name));
  await writeFile(at('safe', 'mask.sql'), 'SELECT 1', { mode: 0o644 });
  await symlink('../safe/mask.sql', at('open', 'link.sql'));
  await symlink('../safe/mask.sql', at('sticky', 'link.sql'));
  await symlink('mask.sql', at('safe', 'link.sql'));
  await symlink(at('open', 'link.sql'), at('safe', 'far.sql'));
  await symlink('safe', at('directory'));
  await chmod(at('open'), 0o777);
  await chmod(at('sticky'), 0o1777);

  const open = {
    code: 'CONFIGURATION_INVALID',
    message: `onReady: ${at('open')} may be written by others`,
  };
  await expect(checkOnReadyFiles([at('open', 'link.sql')])).rejects.toMatchObject(open);
  await expect(checkOnReadyFiles([at('safe', 'far.sql')])).rejects.toMatchObject(open);
  await checkOnReadyFiles([
    at('safe', 'mask.sql'),
    at('safe', 'link.sql'),
    at('directory', 'mask.sql'),
    at('sticky', 'link.sql'),
  ]);
});
