/**
 * Transfers from a real daemon and through a real sshd, of files that change, vanish or cannot be read: either way the
 * same holds. What one of the two has alone stands at the end.
 *
 * A gate between client and server (`gate.ts`) lets a test change a file in the middle of its transfer.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import {
  appendFile,
  chown,
  open,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  listProcesses,
  makeDirectory,
  mountFilesystem,
  partsUser,
  runAsPartsUser,
  runsAsRoot,
  type ScratchDirectory,
  type SshServer,
  scratchDirectory,
  startSshd,
} from '@pgcloned/testbed';
import * as fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  listFiles,
  type RsyncDaemon,
  startDaemon,
  type TransferEndpoint,
  type TransferRequest,
  transfer,
  tryEndpoint,
} from '../src/index.ts';
import { openGate } from './gate.ts';
import { localRunner } from './local-runner.ts';

const { signal } = new AbortController();

let host: ScratchDirectory;
let daemon: RsyncDaemon;
let sshd: SshServer;
let source: string;
let scratch: ScratchDirectory;
let target: string;

beforeAll(async () => {
  host = await scratchDirectory();
  source = join(host.path, 'pgdata');
  await makeDirectory(join(source, 'base/1'));
  sshd = await startSshd();
  daemon = await startDaemon(await localRunner({ directory: host.path }), {
    name: `pgcloned_${randomBytes(16).toString('hex')}_1`,
    modules: [{ name: 'pgdata', path: source }],
    connectAddress: '127.0.0.1',
    bindAddress: null,
    ports: { first: 45_000, last: 45_999 },
    connectionsMax: 20,
    leaseMs: 20_000,
    directory: host.path,
    signal,
  });
});

afterAll(async () => {
  await daemon.stop(AbortSignal.timeout(60_000));
  await sshd[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

beforeEach(async () => {
  scratch = await scratchDirectory();
  target = join(scratch.path, 'target dir');
  await makeDirectory(join(target, 'base/1'));
});

afterEach(async () => {
  const left = (await clients()).map(({ args }) => args);
  await scratch[Symbol.asyncDispose]();
  expect(left).toEqual([]);
  // They notice only a moment later that nobody listens, and the next test counts its own.
  await sendersAreGone();
});

interface Address {
  readonly address: string;
  readonly port: number;
}

const requestFor = (endpoint: TransferEndpoint): TransferRequest => ({
  endpoint,
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
});

/** The daemon, or what forwards to it. */
const fromDaemon = ({ address, port }: Address) => {
  const { user, password } = daemon;
  return { kind: 'daemon', address, port, user, password, module: 'pgdata' } as const;
};

/** The ssh client in the place of a shell. */
function overSsh({ port }: Pick<Address, 'port'>, { directory = source, server = sshd } = {}) {
  const remoteShell = [
    ...['ssh', '-F', 'none', '-i', server.privateKeyFile, '-l', server.user],
    ...['-p', String(port), '-o', 'HostName=127.0.0.1', '-o', 'BatchMode=yes'],
    ...['-o', `HostKeyAlias=[127.0.0.1]:${String(server.port)}`],
    ...['-o', `UserKnownHostsFile=${server.knownHostsFile}`],
  ].join(' ');
  return { kind: 'ssh', remoteShell, workingDirectory: '/', directory } as const;
}

const at = ({ host: address, port }: SshServer): Address => ({ address, port });

const clients = async () =>
  (await listProcesses()).filter(
    ({ args }) => args.includes(target) || (args.startsWith('ssh ') && args.includes(host.path)),
  );

const ofRsync = ({ args }: { readonly args: string }) => args.startsWith('rsync ');

/** Those that send: they work in the directory. */
async function senders(): Promise<readonly number[]> {
  const found = (await listProcesses()).filter(ofRsync);
  const pids = await Promise.all(
    found.map(async ({ pid }) => {
      // It may just have ended.
      const directory = await readlink(`/proc/${String(pid)}/cwd`).catch(() => '');
      return directory.startsWith(source) ? [pid] : [];
    }),
  );
  return pids.flat();
}

/** A test that waits in vain fails by its time limit. */
async function sendersAreGone(): Promise<void> {
  while ((await senders()).length > 0) await delay(50);
}

describe.each([
  {
    way: 'from a daemon',
    server: (): Address => daemon,
    endpointAt: fromDaemon,
    broken: 'exit status 12',
    nobody: 'exit status 10',
  },
  {
    way: 'over SSH',
    server: (): Address => at(sshd),
    endpointAt: overSsh,
    // rsync and its ssh both have something to say.
    broken: expect.stringMatching(/exit status (?:12|255)/),
    nobody: expect.stringMatching(/exit status (?:12|255)/),
  },
])('$way', ({ server, endpointAt, broken, nobody }) => {
  let request: TransferRequest;

  beforeEach(() => {
    request = requestFor(endpointAt(server()));
  });

  test('names of any bytes arrive, with content, mode and time', async () => {
    const names = [
      '#x',
      ';y',
      ' z ',
      '-n',
      'a\nb',
      '100%',
      'q\'"\\#012',
      'a\\[b*?\\',
      '\xff\xfe',
    ].map((name) => `base/1/${name}`);
    for (const name of names) {
      const path = Buffer.from(`${source}/${name}`, 'latin1');
      await writeFile(path, name, { mode: 0o640 });
      await chown(path, partsUser.uid, partsUser.gid);
    }
    let bytesSeen = 0;
    let wireBytes = 0;

    const outcome = await transfer({
      ...request,
      names,
      onBytes: (bytesMore) => (bytesSeen += bytesMore),
      onWireBytes: (bytesMore) => (wireBytes += bytesMore),
    });

    const bytes = Buffer.from(names.join('')).length;
    expect(outcome).toMatchObject({ bytes, again: [] });
    expect(wireBytes).toBeGreaterThan(bytes);
    expect(bytesSeen).toBe(bytes);
    for (const name of names) {
      const [from, to] = [source, target].map((root) => Buffer.from(`${root}/${name}`, 'latin1'));
      expect(await readFile(to ?? '', 'latin1')).toBe(Buffer.from(name).toString('latin1'));
      const [before, after] = await Promise.all([stat(from ?? ''), stat(to ?? '')]);
      expect([after.mode, after.mtimeMs]).toEqual([before.mode, before.mtimeMs]);
    }
  });

  test('whatever bytes names are made of, what is listed is what arrives', async () => {
    const runner = await localRunner({ directory: scratch.path });
    const name = fc
      .uint8Array({ minLength: 1, maxLength: 40 })
      .map((bytes) => Buffer.from(bytes).toString('latin1'))
      .filter((text) => !/[\0/]|^\.{1,2}$/.test(text));
    const listed = async (root: string) => {
      const [entries] = await listFiles(runner, {
        roots: [root],
        stallMs: 30_000,
        signal: signal,
      });
      return (entries ?? []).map((entry) => entry.name).toSorted();
    };
    await fc.assert(
      fc.asyncProperty(fc.uniqueArray(name, { minLength: 1, maxLength: 50 }), async (names) => {
        const any = randomUUID();
        const [from, to] = [join(source, any), join(target, any)];
        for (const root of [from, to]) await makeDirectory(root);
        for (const one of names) await writeFile(Buffer.from(`${from}/${one}`, 'latin1'), one);

        const outcome = await transfer({ ...request, names: names.map((one) => `${any}/${one}`) });

        expect(outcome.again).toEqual([]);
        expect(await listed(from)).toEqual(names.toSorted());
        expect(await listed(to)).toEqual(names.toSorted());
      }),
      { numRuns: 10 },
    );
  });

  test('files that are gone, or are no files any more, are skipped', async () => {
    await writeFile(join(source, 'here'), 'x');
    await runAsPartsUser(['ln', '-sf', '/etc/passwd', join(source, 'base/1/link')]);

    const outcome = await transfer({
      ...request,
      names: ['gone', 'base/1/link', 'here', 'no/where'],
    });

    expect(outcome).toMatchObject({ bytes: 1, again: [] });
    await expect(stat(join(target, 'base/1/link'))).rejects.toThrow('ENOENT');
  });

  test('a file that vanishes after the listing is no error', async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
    await writeFile(join(source, 'last'), 'x');
    await using gate = await openGate(server(), { bytesBefore: 100_000 });

    const transferring = transfer({
      ...request,
      endpoint: endpointAt(gate),
      names: ['big', 'last'],
    });
    await gate.reached;
    await rm(join(source, 'last'));
    gate.open();

    expect(await transferring).toMatchObject({ again: [] });
  });

  test('a file that is truncated while it is read has to be fetched again, by its name', async () => {
    const name = 'base/1/truncated \xe9\n"';
    const path = Buffer.from(`${source}/${name}`, 'latin1');
    await writeFile(path, Buffer.alloc(64_000_000, 1));
    await writeFile(join(source, 'whole'), 'x');
    await using gate = await openGate(server(), { bytesBefore: 100_000 });

    const transferring = transfer({
      ...request,
      endpoint: endpointAt(gate),
      names: [name, 'whole'],
    });
    await gate.reached;
    await truncate(path, 8192);
    gate.open();

    expect((await transferring).again).toEqual([name]);
    expect(await transfer({ ...request, names: [name], compare: 'ignore-times' })).toMatchObject({
      bytes: 8192,
      again: [],
    });
    expect((await stat(Buffer.from(`${target}/${name}`, 'latin1'))).size).toBe(8192);
  });

  test('a file that grows or is overwritten while it is read is fetched in its first size', async () => {
    const path = join(source, 'grows');
    await writeFile(path, Buffer.alloc(64_000_000, 1));
    await using gate = await openGate(server(), { bytesBefore: 100_000 });

    const transferring = transfer({ ...request, endpoint: endpointAt(gate), names: ['grows'] });
    await gate.reached;
    await appendFile(path, 'more');
    {
      await using file = await open(path, 'r+');
      await file.write('changed', 40_000_000);
    }
    gate.open();

    expect(await transferring).toMatchObject({ bytes: 64_000_000, again: [] });
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

  test('a directory that is missing in the target is fatal for what would be in it', async () => {
    await writeFile(join(source, 'here'), 'x');

    const transferring = transfer({
      ...request,
      names: ['here'],
      destination: join(target, 'none/none'),
    });

    await expect(transferring).rejects.toMatchObject({ code: 'TRANSFER_FAILED' });
  });

  test('what is here already is compared as asked', async () => {
    const [from, to] = [join(source, 'same'), join(target, 'same')];
    const fetch = async (compare: TransferRequest['compare']) => {
      await transfer({ ...request, names: ['same'], compare });
      return await readFile(to, 'utf8');
    };
    const stale = async (time: number) => {
      await writeFile(to, 'stale');
      await utimes(to, time, time);
    };
    await writeFile(from, 'fresh');
    await utimes(from, 1_700_000_000.5, 1_700_000_000.5);

    await stale(1_700_000_000.5);
    expect(await fetch('quick')).toBe('stale');
    expect(await fetch('checksum')).toBe('fresh');
    await stale(1_700_000_000.5);
    expect(await fetch('ignore-times')).toBe('fresh');
    await stale(1_700_000_000.25);
    expect(await fetch('quick')).toBe('fresh');
    await writeFile(to, 'longer than the source');
    expect(await fetch('quick')).toBe('fresh');
  });

  describe('of a file that is here in part', () => {
    const PAGE_BYTES = 8192;
    const pages = randomBytes(1_000 * PAGE_BYTES);
    let wireBytes = 0;

    const fetch = async (send: TransferRequest['send']) => {
      wireBytes = 0;
      await transfer({
        ...request,
        names: ['pages'],
        send,
        onWireBytes: (bytesMore) => (wireBytes += bytesMore),
      });
      return await readFile(join(target, 'pages'));
    };

    beforeEach(async () => {
      await writeFile(join(source, 'pages'), pages);
      await utimes(join(source, 'pages'), 1_700_000_000, 1_700_000_000);
    });

    test('a delta sends the pages that differ, and what it takes to find them is counted', async () => {
      const stale = Buffer.from(pages);
      for (let page = 0; page < 1_000; page += 50) stale.write('stale', page * PAGE_BYTES + 100);
      await writeFile(join(target, 'pages'), stale);

      expect(pages.equals(await fetch('delta'))).toBe(true);

      // Of each page a few bytes go there and come back.
      expect(wireBytes).toBeGreaterThan(20 * PAGE_BYTES + 1_000 * 8);
      expect(wireBytes).toBeLessThan(20 * PAGE_BYTES + 1_000 * 16);
    });

    test('the rest is sent without a look at the beginning, so the file does not look complete', async () => {
      const stale = Buffer.from(pages.subarray(0, 900 * PAGE_BYTES)).fill('stale', 0, 100);
      await writeFile(join(target, 'pages'), stale);

      const fetched = await fetch('rest');

      expect(fetched.subarray(0, 100)).toEqual(stale.subarray(0, 100));
      expect(pages.equals(Buffer.concat([pages.subarray(0, 100), fetched.subarray(100)]))).toBe(
        true,
      );
      expect((await stat(join(target, 'pages'))).mtimeMs).toBeGreaterThan(1_700_000_000_000);
      expect(wireBytes).toBeGreaterThan(100 * PAGE_BYTES);
      expect(wireBytes).toBeLessThan(101 * PAGE_BYTES);
      expect(pages.equals(await fetch('delta'))).toBe(true);
      expect((await stat(join(target, 'pages'))).mtimeMs).toBe(1_700_000_000_000);
    });
  });

  test.each(['lz4', 'zstd'] as const)('%s sends less than there is', async (compression) => {
    await writeFile(join(source, 'zeros'), Buffer.alloc(1_000_000));

    let wireBytes = 0;

    const outcome = await transfer({
      ...request,
      names: ['zeros'],
      compression,
      onWireBytes: (bytesMore) => (wireBytes += bytesMore),
    });

    expect(outcome.bytes).toBe(1_000_000);
    expect(wireBytes).toBeLessThan(100_000);
    expect(await readFile(join(target, 'zeros'))).toEqual(Buffer.alloc(1_000_000));
  });

  test('a target that is full is told as such', { skip: !runsAsRoot }, async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(8_000_000));
    await using full = await mountFilesystem({ type: 'tmpfs', bytes: 1_000_000 });

    const transferring = transfer({ ...request, names: ['big'], destination: full.path });

    await expect(transferring).rejects.toMatchObject({ code: 'TARGET_NO_SPACE' });
  });

  test('a target that is read-only is told as such', { skip: !runsAsRoot }, async () => {
    await writeFile(join(source, 'here'), 'x');
    await using frozen = await mountFilesystem({ type: 'tmpfs', bytes: 1_000_000 });
    await frozen.remount('ro');

    const transferring = transfer({ ...request, names: ['here'], destination: frozen.path });

    await expect(transferring).rejects.toMatchObject({
      code: 'TRANSFER_FAILED',
      message: expect.stringContaining('Read-only file system'),
      hint: expect.stringContaining('writable'),
    });
  });

  test('an abort ends rsync before the promise settles, and the sender soon', async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
    await using gate = await openGate(server(), { bytesBefore: 100_000 });
    const controller = new AbortController();

    const transferring = transfer({
      ...request,
      endpoint: endpointAt(gate),
      names: ['big'],
      signal: controller.signal,
    });
    await gate.reached;
    controller.abort(new Error('cancelled'));

    await expect(transferring).rejects.toThrow('cancelled');
    expect(await clients()).toEqual([]);
    await sendersAreGone();
  });

  test('a connection that goes silent is lost after the limit', async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
    await using gate = await openGate(server(), { bytesBefore: 100_000 });

    const transferring = transfer({
      ...request,
      endpoint: endpointAt(gate),
      names: ['big'],
      timeoutMs: 1_000,
    });

    await expect(transferring).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      facts: { exit: 'exit status 30' },
    });
  });

  test('an rsync that hangs itself is a stall, and is killed', async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
    await using gate = await openGate(server(), { bytesBefore: 100_000 });

    // Of rsync's own limit, two seconds, a busy machine may need a part until rsync is stopped.
    const transferring = transfer({
      ...request,
      endpoint: endpointAt(gate),
      names: ['big'],
      timeoutMs: 1_500,
    });
    // Whoever awaits it does so after the stop.
    transferring.catch(() => {});
    await gate.reached;
    for (const { pid } of (await clients()).filter(ofRsync)) process.kill(pid, 'SIGSTOP');

    await expect(transferring).rejects.toMatchObject({ code: 'STALLED' });
  });

  test.each([
    ['first', 0],
    ['second', 1],
  ])(
    'an rsync of which the %s process is killed is a loss at once, and the other one ends with it',
    async (_which, index) => {
      await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
      await using gate = await openGate(server(), { bytesBefore: 1_000_000 });

      const transferring = transfer({ ...request, endpoint: endpointAt(gate), names: ['big'] });
      transferring.catch(() => {});
      await gate.reached;
      const pair = (await clients())
        .filter(ofRsync)
        .toSorted((left, right) => left.pid - right.pid);
      expect(pair).toHaveLength(2);
      process.kill(pair[index]?.pid ?? 0, 'SIGKILL');

      // The gate is closed: whoever read on from the daemon would wait here.
      await expect(transferring).rejects.toMatchObject({ code: 'SOURCE_LOST' });
      expect(await clients()).toEqual([]);
    },
  );

  test('of a transfer that broke off it is counted what had come, also in its first second', async () => {
    await writeFile(join(source, 'first'), Buffer.alloc(1_000_000));
    await writeFile(join(source, 'second'), Buffer.alloc(64_000_000));
    await using gate = await openGate(server(), { bytesBefore: 10_000_000 });
    let wireBytes = 0;

    const transferring = transfer({
      ...request,
      endpoint: endpointAt(gate),
      names: ['first', 'second', 'never begun'],
      onWireBytes: (bytesMore) => (wireBytes += bytesMore),
    });
    transferring.catch(() => {});
    await gate.reached;
    gate.breakConnections();

    await expect(transferring).rejects.toMatchObject({ code: 'SOURCE_LOST' });
    // What ssh has taken and rsync has not is lost on it.
    expect(wireBytes).toBeGreaterThan(7_000_000);
    expect(wireBytes).toBeLessThan(10_200_000);
  });

  test('a connection that breaks is a loss, and the sender ends with it', async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
    await using gate = await openGate(server(), { bytesBefore: 100_000 });

    const transferring = transfer({ ...request, endpoint: endpointAt(gate), names: ['big'] });
    transferring.catch(() => {});
    await gate.reached;
    expect(await senders()).toHaveLength(1);
    gate.breakConnections();

    await expect(transferring).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      facts: { exit: broken },
    });
    await sendersAreGone();
  });

  test('a port where nobody listens is a loss', async () => {
    const gate = await openGate(server(), { bytesBefore: 0 });
    await gate[Symbol.asyncDispose]();

    const transferring = transfer({ ...request, endpoint: endpointAt(gate), names: ['here'] });

    await expect(transferring).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      facts: { exit: nobody },
    });
  });

  test('rsync holds the descriptors that it is given', async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
    await using lock = await open(join(scratch.path, 'lock'), 'w');
    await using gate = await openGate(server(), { bytesBefore: 100_000 });

    const transferring = transfer({
      ...request,
      endpoint: endpointAt(gate),
      names: ['big'],
      inheritedFds: [lock.fd],
    });
    await gate.reached;
    const held = await Promise.all(
      (await clients())
        .filter(ofRsync)
        .map(async ({ pid }) => (await stat(`/proc/${String(pid)}/fd/3`)).ino),
    );
    gate.open();
    await transferring;

    expect(new Set(held)).toEqual(new Set([(await lock.stat()).ino]));
  });
});

describe('from a daemon', () => {
  test('a connection that breaks before the daemon has said a word is a loss, too', async () => {
    await writeFile(join(source, 'here'), 'x');
    // It reads what rsync says first: a connection closed over bytes that nobody has read is reset, which is another status.
    await using mute = createServer((client) => client.resume().end());
    mute.listen(0, '127.0.0.1');
    await once(mute, 'listening');
    const endpoint = fromDaemon(mute.address() as AddressInfo);

    const transferring = transfer({ ...requestFor(endpoint), names: ['here'] });

    await expect(transferring).rejects.toMatchObject({
      code: 'SOURCE_LOST',
      facts: { exit: 'exit status 5' },
    });
  });

  test('a module that the daemon does not have is refused', async () => {
    const transferring = transfer({
      ...requestFor({ ...fromDaemon(daemon), module: 'other' }),
      names: ['here'],
    });

    await expect(transferring).rejects.toMatchObject({
      code: 'RSYNCD_FAILED',
      message: expect.stringContaining('Unknown module'),
    });
  });
});

describe('over SSH', () => {
  test('a root may be called anything, and be a link', async () => {
    // What a shell, a daemon's configuration, ssh or rsync would each take for something else.
    const name = ` -n 'b' "c" $HOME \${x} %h %% ~ \`id\` *[a]?{b,c} a\\b\\#012 größe !!\n;`;
    const directory = join(source, name);
    await makeDirectory(directory);
    await writeFile(join(directory, 'here'), name);
    await symlink(directory, join(scratch.path, 'link'));

    for (const root of [directory, join(scratch.path, 'link')]) {
      const endpoint = overSsh(at(sshd), { directory: root });
      await tryEndpoint(endpoint, { timeoutMs: 20_000, signal });
      const fetched = { ...requestFor(endpoint), names: ['here'] };
      const outcome = await transfer({ ...fetched, compare: 'ignore-times' });

      expect(outcome).toMatchObject({ bytes: Buffer.from(name).length, again: [] });
      expect(await readFile(join(target, 'here'), 'utf8')).toBe(name);
    }
  });

  test('a directory that is gone is a change of the source', async () => {
    const endpoint = overSsh(at(sshd), { directory: join(source, 'gone') });

    await expect(transfer({ ...requestFor(endpoint), names: ['here'] })).rejects.toMatchObject({
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

      const endpoint = overSsh(gate, { server: noisy });
      const transferring = transfer({ ...requestFor(endpoint), names: ['truncated'] });
      await gate.reached;
      await truncate(path, 8192);
      gate.open();

      expect((await transferring).again).toEqual(['truncated']);
    });

    test('that greets is in the way, and told as such', async () => {
      await using polite = await startSshd({
        settings: [`ForceCommand echo Welcome; ${evaluate}`],
      });

      const endpoint = overSsh(at(polite), { server: polite });
      const trying = tryEndpoint(endpoint, { timeoutMs: 20_000, signal });

      await expect(trying).rejects.toMatchObject({
        code: 'TRANSFER_FAILED',
        hint: expect.stringContaining('login shell'),
      });
    });
  });

  test('an rsync whose other end has frozen ends by itself, on either side', async () => {
    await writeFile(join(source, 'big'), Buffer.alloc(64_000_000));
    await using gate = await openGate(at(sshd), { bytesBefore: 100_000 });

    const fetched = { ...requestFor(overSsh(gate)), names: ['big'] };
    const transferring = transfer({ ...fetched, timeoutMs: 3_000 });
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
});
