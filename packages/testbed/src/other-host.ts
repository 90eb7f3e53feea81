/**
 * A second host on this machine, as far as a clone can tell: a network of its own, joined to ours by a cable that can be
 * cut, and another directory under a path that both have. Needs root.
 *
 * In the middle of the cable is a switch, in a network of its own, too: when it drops what arrives, neither end sees its
 * link go down, as with a cut somewhere on the way.
 */
import { randomInt } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { runProcess } from '@pgcloned/process';

const TOOL_TIMEOUT_MS = 60_000;

export interface OtherHost extends AsyncDisposable {
  /** Our address on the cable: where the other host reaches us. */
  readonly address: string;
  /** Another one of ours, as if it were that of a third host: it can vanish. */
  readonly secondAddress: string;
  /** The address of the other host. */
  readonly clientAddress: string;
  /** The argv that runs `argv` over there. */
  readonly on: (
    argv: readonly string[],
    mount?: { readonly path: string; readonly by: string },
  ) => readonly string[];
  /** What has gone over the cable so far, both ways, with all headers. */
  carriedBytes(): Promise<number>;
  /** From now on every packet between the two is lost, and nobody is told. */
  cut(): Promise<void>;
  /** Ends a cut. Does nothing if there is none. */
  mend(): Promise<void>;
  /** From now on nobody has the second address, as after a power cut: what is sent there is lost. */
  vanish(): Promise<void>;
  /** Ends that. */
  reappear(): Promise<void>;
  /** Every connection between the two is ended by a reset, as by a firewall that was restarted. */
  reset(): Promise<void>;
}

/** @param link How much the cable carries each way; by default as much as the machine can. */
export async function otherHost(link?: { readonly megabitsPerSecond: number }): Promise<OtherHost> {
  // Tests run side by side: the number is drawn, ip refuses a name that is taken, and each has its own subnet.
  const number = randomInt(50 * 250);
  const subnet = `10.${String(200 + Math.floor(number / 250))}.${String(number % 250)}`;
  const [address, clientAddress, secondAddress] = [`${subnet}.1`, `${subnet}.2`, `${subnet}.3`];
  const name = `testbed-${String(number)}`;
  const middle = `${name}-cable`;
  const [ours, theirs] = [`tb${String(number)}a`, `tb${String(number)}b`];
  await using undo = new AsyncDisposableStack();
  for (const network of [name, middle]) {
    await ip('netns', 'add', network);
    // A cable ends with the namespace that holds one end of it.
    undo.defer(async () => {
      await ip('netns', 'delete', network);
    });
  }
  await ip('link', 'add', ours, 'type', 'veth', 'peer', 'name', 'near', 'netns', middle);
  await ip(
    '-n',
    name,
    'link',
    'add',
    theirs,
    'type',
    'veth',
    'peer',
    'name',
    'far',
    'netns',
    middle,
  );
  await ip('-n', middle, 'link', 'add', 'switch', 'type', 'bridge');
  for (const port of ['near', 'far'])
    await ip('-n', middle, 'link', 'set', port, 'master', 'switch');
  for (const device of ['near', 'far', 'switch'])
    await ip('-n', middle, 'link', 'set', device, 'up');
  await ip('address', 'add', `${address}/24`, 'dev', ours);
  await ip('address', 'add', `${secondAddress}/24`, 'dev', ours);
  await ip('link', 'set', ours, 'up');
  await ip('-n', name, 'address', 'add', `${clientAddress}/24`, 'dev', theirs);
  await ip('-n', name, 'link', 'set', theirs, 'up');
  await ip('-n', name, 'link', 'set', 'lo', 'up');
  if (link !== undefined) {
    // A few packets of the size that the kernel hands on, and no more delay than a switch has.
    const rate = `rate ${String(link.megabitsPerSecond)}mbit burst 128kb latency 20ms`.split(' ');
    await run('tc', 'qdisc', 'add', 'dev', ours, 'root', 'tbf', ...rate);
    await run('tc', '-n', name, 'qdisc', 'add', 'dev', theirs, 'root', 'tbf', ...rate);
  }
  const owned = undo.move();
  return {
    address,
    secondAddress,
    clientAddress,
    on: (argv, mount) => {
      const inNetwork = ['nsenter', `--net=/run/netns/${name}`, '--'];
      if (mount === undefined) return [...inNetwork, ...argv];
      const script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"';
      const unshare = ['unshare', '--mount', '--propagation', 'private', 'sh', '-c', script, 'sh'];
      return [...inNetwork, ...unshare, mount.by, mount.path, ...argv];
    },
    carriedBytes: async () => {
      const counters = ['rx_bytes', 'tx_bytes'].map(
        async (counter) => await readFile(`/sys/class/net/${ours}/statistics/${counter}`, 'utf8'),
      );
      return (await Promise.all(counters)).reduce((sum, text) => sum + Number(text), 0);
    },
    cut: async () => {
      await ip('-n', middle, 'link', 'set', 'far', 'nomaster');
    },
    mend: async () => {
      await ip('-n', middle, 'link', 'set', 'far', 'master', 'switch');
    },
    vanish: async () => {
      await ip('address', 'delete', `${secondAddress}/24`, 'dev', ours);
    },
    reappear: async () => {
      await ip('address', 'add', `${secondAddress}/24`, 'dev', ours);
    },
    reset: async () => {
      for (const source of [address, secondAddress])
        await run('ss', '--kill', '--tcp', 'state', 'connected', 'src', source);
    },
    [Symbol.asyncDispose]: async () => {
      await owned.disposeAsync();
    },
  };
}

async function ip(...args: readonly string[]): Promise<void> {
  await run('ip', ...args);
}

async function run(file: string, ...args: readonly string[]): Promise<void> {
  await runProcess(
    { file, args, env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } },
    { signal: AbortSignal.timeout(TOOL_TIMEOUT_MS) },
  );
}
