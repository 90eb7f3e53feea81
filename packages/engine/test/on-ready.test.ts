/** Whoever can put another file in the place of one of `onReady` owns the clone, or sees what it should have masked. */
import { chmod, mkdir, mkdtemp, realpath, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CloneError } from '@pgcloned/contract';
import { expect, test } from 'vitest';
import { checkOnReadyFiles } from '../src/replica/on-ready.ts';
import { asOfClone } from '../src/replica/private-run.ts';

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

test('what the server of a clone lacks is not said of its source', () => {
  const facts = { sqlState: '53100', reason: 'could not extend file: No space left on device' };
  const full = new CloneError('SOURCE_NO_SPACE', 'the source has no space left', { facts });
  const lost = new CloneError('SOURCE_LOST', 'the session was lost', { facts: { reason: 'gone' } });
  const failed = new CloneError('ON_READY_FAILED', 'a file failed');

  expect(asOfClone(full, 'its log')).toMatchObject({
    code: 'TARGET_NO_SPACE',
    message: 'the clone has no space left',
    hint: null,
    facts: { ...facts, log: 'its log' },
  });
  expect(asOfClone(lost, 'PANIC')).toMatchObject({
    code: 'REPLICA_START_FAILED',
    facts: { reason: 'gone', log: 'PANIC' },
  });
  expect(asOfClone(failed, '')).toBe(failed);
});
