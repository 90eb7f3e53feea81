/** The programs that a clone needs on both hosts, and what of this host PostgreSQL depends on. */
import { CloneError } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import type { Seen } from './check.ts';
import { install, installerHere } from './install.ts';

/** Of this host, as PostgreSQL would see it; null if its C library is another one than glibc. */
export async function libcVersion(signal: AbortSignal): Promise<string | null> {
  const { stdout } = await runProcess(
    { file: 'getconf', args: ['GNU_LIBC_VERSION'], env: { LC_ALL: 'C' } },
    { signal, accept: 'any' },
  );
  return /^glibc (\S+)/.exec(stdout.toString())?.[1] ?? null;
}

export async function rsyncMissingHere(): Promise<CloneError> {
  return new CloneError('TOOL_MISSING', 'rsync is not installed on this host', {
    facts: { program: 'rsync' },
    hint: 'Install it here, or put its directory on the PATH of the worker.',
    remedies: install(await installerHere(), 'rsync', 'host'),
  });
}

/** What is needed on the source host and is not there, as errors. */
export function missingPrograms(
  { plan }: CloneRun,
  { host: { host }, probe }: Pick<Seen, 'host' | 'probe'>,
): readonly CloneError[] {
  const missing = [
    ...(plan.spec.method === 'rsync' && probe.rsyncVersion === null
      ? [{ program: 'rsync', packageName: 'rsync' }]
      : []),
    ...(probe.hasGnuFind ? [] : [{ program: 'GNU find', packageName: 'findutils' }]),
  ];
  return missing.map(
    ({ program, packageName }) =>
      new CloneError('TOOL_MISSING', `${program} is not installed on ${host}`, {
        facts: { program, host },
        hint: `Install it there: apt-get install ${packageName}.`,
        remedies: install(probe.installer, packageName, 'source'),
      }),
  );
}
