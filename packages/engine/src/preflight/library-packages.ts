/**
 * Which packages bring the libraries that are missing here: the source has them installed, and where both hosts are of one
 * distribution the file has the same path there.
 */
import type { Finding } from '@pgcloned/contract';
import { packagesOf } from '@pgcloned/rsync';
import type { Seen } from './check.ts';
import { install, installerHere } from './install.ts';

/** `findings`, those about a library with the command that installs it where that is known. */
export async function withPackages(
  findings: readonly Finding[],
  { host }: Partial<Seen>,
  signal: AbortSignal,
): Promise<readonly Finding[]> {
  const paths = findings.flatMap(pathsOf);
  if (host === undefined || paths.length === 0) return findings;
  const installer = await installerHere();
  // It is help and no finding: without it each still says what is missing.
  const packages = await packagesOf(host.runner(), { paths, signal }).catch(() => new Map());
  return findings.map((finding) => {
    const found = pathsOf(finding).flatMap((path) => packages.get(path) ?? []);
    const [name] = found;
    if (name === undefined) return finding;
    return { ...finding, remedies: [...install(installer, name, 'host')] };
  });
}

/** Where a missing library was looked for. */
function pathsOf({ facts: { library, path }, remedies }: Finding): readonly string[] {
  if (library === undefined || typeof path !== 'string' || remedies.length > 0) return [];
  return path.split(', ');
}
