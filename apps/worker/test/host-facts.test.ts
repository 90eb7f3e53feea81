import { chmod, mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clone, HostFacts } from '@pgcloned/contract';
import { mountFilesystem, runsAsRoot, scratchDirectory } from '@pgcloned/testbed';
import { expect, test } from 'vitest';
import { readHostFacts, readMachineId, rememberSharing } from '../src/host-facts.ts';
import { someClone } from './worker-parts.ts';

test('a host tells which versions are installed and how much room its roots have', async () => {
  await using scratch = await scratchDirectory();
  for (const major of [14, 16, 17]) {
    const bin = join(scratch.path, String(major), 'bin');
    await mkdir(bin, { recursive: true });
    await writeFile(join(bin, 'postgres'), '');
    if (major !== 17) await chmod(join(bin, 'postgres'), 0o755);
  }

  const facts = await readHostFacts({
    name: 'replica-1',
    machineId: 'm',
    workerId: 'w',
    postgresBin: join(scratch.path, '{major}/bin'),
    dataRoots: [scratch.path, join(scratch.path, 'not-mounted')],
    sources: ['orders'],
    allowedSettings: [],
    concurrency: 2,
    runningClones: [],
    sharing: async () => null,
    clones: [],
  });

  expect(HostFacts.parse(facts)).toEqual(facts);
  expect(facts.postgresMajors).toEqual([16]);
  expect(facts.filesystems).toMatchObject([{ path: scratch.path }]);
  expect(facts.filesystems[0]?.freeBytes).toBeGreaterThan(0);
});

test('a host tells what its clones take of each root, and not of others', async () => {
  await using scratch = await scratchDirectory();
  const cloneAt = (dataDirectory: string, space: Clone['instance']['space']): Clone => {
    const clone = someClone({ target: { host: 'replica-1', dataDirectory } });
    return { ...clone, instance: { ...clone.instance, space } };
  };

  const { filesystems } = await readHostFacts({
    name: 'replica-1',
    machineId: 'm',
    workerId: 'w',
    postgresBin: '/nowhere/{major}',
    dataRoots: [scratch.path],
    sources: [],
    allowedSettings: [],
    concurrency: 2,
    runningClones: [],
    sharing: async () => null,
    clones: [
      cloneAt(join(scratch.path, 'one'), { ownBytes: 1, sharedBytes: 10 }),
      cloneAt(join(scratch.path, 'deep', 'two'), { ownBytes: 2, sharedBytes: 20 }),
      cloneAt(join(scratch.path, 'unmeasured'), null),
      cloneAt(`${scratch.path}2/elsewhere`, { ownBytes: 4, sharedBytes: 40 }),
    ],
  });

  expect(filesystems).toMatchObject([{ clones: { count: 2, ownBytes: 3, sharedBytes: 30 } }]);
});

test.skipIf(!runsAsRoot)(
  'a host tells which of its roots share blocks, and leaves nothing there (needs root)',
  async () => {
    await using xfs = await mountFilesystem({ type: 'xfs', bytes: 300 * 1024 ** 2 });
    await using ext4 = await mountFilesystem({ type: 'ext4', bytes: 20 * 1024 ** 2 });
    const sharing = rememberSharing();

    expect(await sharing(xfs.path)).toBe(true);
    expect(await sharing(ext4.path)).toBe(false);
    await ext4.remount('ro');
    expect(await sharing(ext4.path)).toBe(false);
    expect(await rememberSharing()(ext4.path)).toBeNull();
    expect(await readdir(xfs.path)).toEqual([]);
    expect(await readdir(ext4.path)).toEqual(['lost+found']);
  },
);

test('a machine keeps its identity, and another state directory has another', async () => {
  await using one = await scratchDirectory();
  await using other = await scratchDirectory();

  const identity = await readMachineId(one.path);

  expect(await readMachineId(one.path)).toBe(identity);
  expect(await readMachineId(other.path)).not.toBe(identity);
});
