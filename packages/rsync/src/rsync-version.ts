/** Which versions of rsync are known to be dangerous. */

/**
 * Releases that mended what an attacker on the other end could use, newest first, with the worst of it. All of it needs a
 * connection, and ours are authenticated, read-only and short: hence a warning and no refusal. R6.15.
 */
const MENDED = [
  { version: '3.5.0', problems: 'CVE-2026-53784, CVE-2026-70456 and 31 more' },
  { version: '3.4.3', problems: 'CVE-2026-29518 and five more' },
  { version: '3.4.0', problems: 'CVE-2024-12084 to CVE-2024-12088 and CVE-2024-12747' },
] as const;

/**
 * @param version As `rsync --version` says it: `3.2.7`. It does not tell what a distribution has mended in it.
 * @returns A sentence for the record of the clone, or null if nothing is known against this version.
 */
export function rsyncVersionWarning(version: string): string | null {
  const open = MENDED.filter((mended) => compareVersions(version, mended.version) < 0);
  const [newest] = open;
  if (newest === undefined) return null;
  const problems = open.map((mended) => mended.problems).join('; ');
  return `rsync ${version} has known vulnerabilities unless the distribution mended them (${problems}); ${newest.version} has none of them.`;
}

function compareVersions(left: string, right: string): number {
  const [a, b] = [left, right].map((version) => version.split('.').map(Number));
  for (let index = 0; index < 3; index += 1) {
    const difference = (a?.[index] ?? 0) - (b?.[index] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
