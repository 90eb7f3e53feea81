/**
 * btrfs with and without copy-on-write.
 *
 * `chattr +C` switches it off for a file, as many do for databases. Two files share blocks only if both have it or both
 * lack it (R10.2). New files inherit it from their directory, and it can be changed as long as a file is empty.
 */
import { statfs } from 'node:fs/promises';
import { runProcess } from '@pgcloned/process';

const BTRFS_MAGIC = 0x9123683e;

/** Well below the 128 KiB of a single argument and the 2 MiB of all of them. */
const PATHS_PER_CALL_MAX = 500;

export interface DirectoryPair {
  readonly from: string;
  readonly to: string;
}

/**
 * Gives each directory `to` the copy-on-write of its `from`, before the first file is made in it. Does nothing on other
 * filesystems than btrfs. A directory that it cannot name to the tools is left out: its files are mended one by one. One
 * that was dropped meanwhile has none.
 *
 * @throws {CloneError} `TOOL_MISSING`, `PROCESS_FAILED`.
 */
export async function keepCopyOnWrite(
  directories: readonly DirectoryPair[],
  { signal }: { readonly signal: AbortSignal },
): Promise<void> {
  const [first] = directories;
  if (first === undefined || (await statfs(first.to)).type !== BTRFS_MAGIC) return;
  const named = directories.filter(({ from, to }) => !`${from}${to}`.includes('\n'));
  for (let start = 0; start < named.length; start += PATHS_PER_CALL_MAX) {
    const pairs = named.slice(start, start + PATHS_PER_CALL_MAX);
    const wanted = await lacksCopyOnWrite(
      pairs.map(({ from }) => from),
      signal,
    );
    const found = await lacksCopyOnWrite(
      pairs.map(({ to }) => to),
      signal,
    );
    for (const flag of ['+C', '-C'] as const) {
      const changed = pairs.filter(
        ({ from, to }) =>
          wanted.get(from) === (flag === '+C') && found.get(to) !== wanted.get(from),
      );
      if (changed.length > 0)
        await chattr(
          flag,
          changed.map(({ to }) => to),
          signal,
        );
    }
  }
}

/** Gives an empty file the copy-on-write of another one. */
export async function keepCopyOnWriteOfFile(
  { from, to }: DirectoryPair,
  signal: AbortSignal,
): Promise<void> {
  const wanted = await lacksCopyOnWrite([from], signal);
  await chattr(wanted.get(from) === true ? '+C' : '-C', [to], signal);
}

/** By path; without those that are gone. */
async function lacksCopyOnWrite(
  paths: readonly string[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, boolean>> {
  const { stdout } = await runProcess(
    { file: 'lsattr', args: ['-d', '--', ...paths], env: {} },
    // It fails if one of them has just been removed.
    { signal, accept: 'any' },
  );
  const lines = stdout.toString('utf8').trimEnd().split('\n');
  return new Map(
    lines.map((line) => {
      const [flags = ''] = line.split(' ');
      return [line.slice(flags.length + 1), flags.includes('C')];
    }),
  );
}

async function chattr(
  flag: '+C' | '-C',
  paths: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  await runProcess({ file: 'chattr', args: [flag, '--', ...paths], env: {} }, { signal });
}
