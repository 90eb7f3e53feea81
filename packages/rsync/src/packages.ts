/** Which packages of the source host brought files, as those who install them name them. */
import type { CommandRunner } from '@pgcloned/process';
import { askRemoteText } from './remote-script.ts';

/** The database of packages is read once for each path. */
const LIMIT_MS = 10_000;

/** It ends up in a command that root runs: nothing but a name may come from there. */
const PACKAGE_NAME = /^[A-Za-z0-9][A-Za-z0-9.+_-]*$/;

/**
 * @returns By path; without those that no package has brought, or nobody there knows of.
 * @throws {CloneError} `REMOTE_COMMAND_FAILED`, and what the runner throws.
 */
export async function packagesOf(
  runner: CommandRunner,
  { paths, signal }: { readonly paths: readonly string[]; readonly signal: AbortSignal },
): Promise<ReadonlyMap<string, string>> {
  const answer = await askRemoteText(runner, 'packages', paths, { signal, limitMs: LIMIT_MS });
  const names = answer.split('\n');
  return new Map(
    paths.flatMap((path, index) => {
      const name = names[index] ?? '';
      return PACKAGE_NAME.test(name) ? [[path, name] as const] : [];
    }),
  );
}
