/**
 * Transfers over SSH: what differs from those of a daemon, which `transfer.test.ts` has. The ssh client stands in the
 * rsync's place of a shell, and a real sshd behind it.
 */
import { randomBytes } from 'node:crypto';
import { readFile, readlink, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  listProcesses,
  makeDirectory,
  runAsPartsUser,
  type ScratchDirectory,
  type SshServer,
  scratchDirectory,
  startSshd,
} from '@pgcloned/testbed';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type TransferRequest, transfer, tryEndpoint } from '../src/index.ts';
import { type Gate, openGate } from './gate.ts';

const { signal } = new AbortController();

let sshd: SshServer;
let scratch: ScratchDirectory;
let source: string;
let target: string;
let request: TransferRequest;

beforeAll(async () => {
  sshd = await startSshd();
});

afterAll(async () => {
  await sshd[Symbol.asyncDispose]();
});

beforeEach(async () => {
  scratch = await scratchDirectory();
  source = join(scratch.path, 'source');
  target = join(scratch.path, 'target dir');
  for (const root of [source, target]) await makeDirectory(join(root, 'base/1'));
  request = {
    endpoint: over(source),
    names: [],
    destination: target,
    compression: 'none',
    compare: 'quick',
    send: 'whole',
    timeoutMs: 20_000,
    inheritedFds: [],
    onBytes: () => {},
    onWireBytes: () => {},
    signal,
  };
});

afterEach(async () => {
  await scratch[Symbol.asyncDispose]();
  expect((await clients()).map(({ args }) => args)).toEqual([]);
});

function over(
  directory: string,
  { server = sshd, gate }: { readonly server?: SshServer; readonly gate?: Gate } = {},
) {
  const remoteShell = [
    ...['ssh', '-F', 'none', '-i', server.privateKeyFile, '-l', server.user],
    ...['-p', String((gate ?? server).port), '-o', 'HostName=127.0.0.1'],
    ...['-o', `HostKeyAlias=[127.0.0.1]:${String(server.port)}`],
    ...['-o', `UserKnownHostsFile=${server.knownHostsFile}`, '-o', 'BatchMode=yes'],
  ].join(' ');
  return { kind: 'ssh', remoteShell, workingDirectory: '/', directory } as const;
}

const at = ({ host: address, port }: SshServer) => ({ address, port });

const clients = async () => (await listProcesses()).filter(({ args }) => args.includes(target));

/** The rsyncs on the source host: they work in the directory. */
async function senders(): Promise<readonly number[]> {
  const found = (await listProcesses()).filter(({ args }) => args.startsWith('rsync --server'));
  const pids = await Promise.all(
    found.map(async ({ pid }) => {
      // It may just have ended.
      const directory = await readlink(`/proc/${String(pid)}/cwd`).catch(() => '');
      return directory.startsWith(scratch.path) ? [pid] : [];
    }),
  );
  return pids.flat();
}

/** A test that waits in vain fails by its time limit. */
async function sendersAreGone(): Promise<void> {
  while ((await senders()).length > 0) await delay(50);
}

test('a root may be called anything, and be a link', async () => {
  // What a shell, a daemon's configuration, ssh or rsync would each take for something else.
  const name = ` -n 'b' "c" $HOME \${x} %h %% ~ \`id\` *[a]?{b,c} a\\b\\#012 größe !!\n;`;
  const directory = join(source, name);
  await makeDirectory(directory);
  await writeFile(join(directory, 'here'), name);
  await symlink(directory, join(scratch.path, 'link'));

  for (const root of [directory, join(scratch.path, 'link')]) {
    await tryEndpoint(over(root), { timeoutMs: 20_000, signal });
    const fetched = { ...request, endpoint: over(root), names: ['here'] };
    const outcome = await transfer({ ...fetched, compare: 'ignore-times' });

    expect(outcome).toMatchObject({ bytes: Buffer.from(name).length, again: [] });
    expect(await readFile(join(target, 'here'), 'utf8')).toBe(name);
  }
});

test('names of any bytes arrive, and what is counted is what went over the network', async () => {
  const names = ['#x', ';y', ' z ', '-n', 'a\nb', '$HOME', 'q\'"\\#012', '*', '\xff\xfe'].map(
    (name) => `base/1/${name}`,
  );
  for (const name of names) await writeFile(Buffer.from(`${source}/${name}`, 'latin1'), name);
  let bytesSeen = 0;
  let wireBytes = 0;

  const outcome = await transfer({
    ...request,
    names: [...names, 'base/1/gone'],
    onBytes: (bytesMore) => (bytesSeen += bytesMore),
    onWireBytes: (bytesMore) => (wireBytes += bytesMore),
  });

  const bytes = Buffer.from(names.join('')).length;
  expect(outcome).toMatchObject({ bytes, again: [] });
  expect(bytesSeen).toBe(bytes);
  expect(wireBytes).toBeGreaterThan(bytes);
  for (const name of names)
    expect(await readFile(Buffer.from(`${target}/${name}`, 'latin1'), 'latin1')).toBe(
      Buffer.from(name).toString('latin1'),
    );
});

test('a delta and a rest work as with a daemon', async () => {
  const pages = randomBytes(100 * 8192);
  await writeFile(join(source, 'pages'), pages);
  await writeFile(join(target, 'pages'), pages.subarray(0, 90 * 8192));
  let wireBytes = 0;
  const fetch = async (send: TransferRequest['send']) =>
    await transfer({
      ...request,
      ...{ names: ['pages'], send, compare: 'ignore-times' },
      onWireBytes: (bytesMore) => (wireBytes += bytesMore),
    });

  await fetch('rest');
  await fetch('delta');

  expect(wireBytes).toBeLessThan(12 * 8192);
  expect(pages.equals(await readFile(join(target, 'pages')))).toBe(true);
});

test('a file that is truncated while it is read has to be fetched again, although its path is shown whole', async () => {
  const name = 'base/1/truncated \xe9\n"';
  const path = Buffer.from(`${source}/${name}`, 'latin1');
  await writeFile(path, Buffer.alloc(64_000_000, 1));
  await writeFile(join(source, 'whole'), 'x');
  await using gate = await openGate(at(sshd), { bytesBefore: 100_000 });

  const transferring = transfer({
    ...request,
    endpoint: over(source, { gate }),
    names: [name, 'whole'],
  });
  await gate.reached;
  await truncate(path, 8192);
  gate.open();

  expect((await transferring).again).toEqual([name]);
});

test('a file that may not be read is fatal and named', async () => {
  await runAsPartsUser(['install', '--mode', '000', '/dev/null', join(source, 'base/1/closed')]);

  const transferring = transfer({ ...request, names: ['base/1/closed'] });

  await expect(transferring).rejects.toMatchObject({
    code: 'TRANSFER_FAILED',
    message: expect.stringMatching(/base\/1\/closed.*Permission denied/),
    hint: expect.stringContaining('postgres'),
  });
});

test('a directory that is gone is a change of the source', async () => {
  const endpoint = over(join(source, 'gone'));

  await expect(transfer({ ...request, endpoint, names: ['here'] })).rejects.toMatchObject({
    code: 'SOURCE_CHANGED',
    facts: { directory: join(source, 'gone') },
  });
  await expect(tryEndpoint(endpoint, { timeoutMs: 20_000, signal })).rejects.toMatchObject({
    code: 'SOURCE_CHANGED',
  });
});

describe('a login shell', () => {
  const evaluate = 'eval "$SSH_ORIGINAL_COMMAND"';

  test('that complains does not turn a harmless failure into another one', async () => {
    await using noisy = await startSshd({
      settings: [`ForceCommand echo "stty: cannot open terminal" >&2; ${evaluate}`],
    });
    const path = join(source, 'truncated');
    await writeFile(path, Buffer.alloc(64_000_000, 1));
    await using gate = await openGate(at(noisy), { bytesBefore: 100_000 });

    const transferring = transfer({
      ...request,
      endpoint: over(source, { gate, server: noisy }),
      names: ['truncated'],
    });
    await gate.reached;
    await truncate(path, 8192);
    gate.open();

    expect((await transferring).again).toEqual(['truncated']);
  });

  test('that greets is in the way, and told as such', async () => {
    await using polite = await startSshd({
      settings: [`ForceCommand echo Welcome; ${evaluate}`],
    });

    const trying = tryEndpoint(over(source, { server: polite }), { timeoutMs: 20_000, signal });

    await expect(trying).rejects.toMatchObject({
      code: 'TRANSFER_FAILED',
      hint: expect.stringContaining('login shell'),
    });
  });
});

test('a connection that breaks is a loss, and the rsync on the source ends with it', async () => {
  await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
  await using gate = await openGate(at(sshd), { bytesBefore: 100_000 });

  const transferring = transfer({
    ...request,
    endpoint: over(source, { gate }),
    names: ['big'],
  });
  transferring.catch(() => {});
  await gate.reached;
  expect(await senders()).toHaveLength(1);
  gate.breakConnections();

  await expect(transferring).rejects.toMatchObject({ code: 'SOURCE_LOST' });
  await sendersAreGone();
});

test('a host where no sshd answers is a loss', async () => {
  const gate = await openGate(at(sshd), { bytesBefore: 0 });
  await gate[Symbol.asyncDispose]();

  const transferring = transfer({
    ...request,
    endpoint: over(source, { gate }),
    names: ['here'],
  });

  await expect(transferring).rejects.toMatchObject({ code: 'SOURCE_LOST' });
});

test('an rsync whose other end has frozen ends by itself, on either side', async () => {
  await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
  await using gate = await openGate(at(sshd), { bytesBefore: 100_000 });

  const transferring = transfer({
    ...request,
    endpoint: over(source, { gate }),
    names: ['big'],
    timeoutMs: 1_000,
  });
  transferring.catch(() => {});
  await gate.reached;
  // All that a frozen host would still do is answer keepalives.
  const frozen = (await clients()).map(({ pid }) => pid);
  for (const pid of frozen) process.kill(pid, 'SIGSTOP');
  try {
    await sendersAreGone();
  } finally {
    for (const pid of frozen) process.kill(pid, 'SIGCONT');
  }

  await expect(transferring).rejects.toMatchObject({ code: 'SOURCE_LOST' });
});

test('an abort ends rsync and its ssh before the promise settles, and the sender soon', async () => {
  await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
  await using gate = await openGate(at(sshd), { bytesBefore: 100_000 });
  const controller = new AbortController();

  const transferring = transfer({
    ...request,
    endpoint: over(source, { gate }),
    names: ['big'],
    signal: controller.signal,
  });
  await gate.reached;
  controller.abort(new Error('cancelled'));

  await expect(transferring).rejects.toThrow('cancelled');
  expect(await clients()).toEqual([]);
  await sendersAreGone();
});
