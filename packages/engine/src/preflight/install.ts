/** The commands that install packages, on the source and here. */
import { basename } from 'node:path';
import type { Remedy } from '@pgcloned/contract';
import { exists } from '../target/marker.ts';

/** Those that the script looks for on the source, too. */
const INSTALLERS = ['/usr/bin/apt-get', '/usr/bin/dnf', '/usr/bin/zypper'];

/**
 * Brings a program that is there up to date, too.
 *
 * @param installer Null: it is not known how packages are installed there.
 */
export function install(
  installer: string | null,
  packageName: string,
  on: 'source' | 'host',
): readonly Remedy[] {
  if (installer === null) return [];
  const text = `${basename(installer)} install -y ${packageName}`;
  return [{ kind: 'shell', on, where: 'root', text }];
}

export async function installerHere(): Promise<string | null> {
  for (const installer of INSTALLERS) if (await exists(installer)) return installer;
  return null;
}
