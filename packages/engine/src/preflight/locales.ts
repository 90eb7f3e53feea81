/**
 * Which locales of the source this host lacks. A server lets nobody into a database whose locale the C library does not know,
 * and does not even start with such a one in its configuration.
 */
import type { Remedy } from '@pgcloned/contract';
import { runProcess } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import type { Findings, Seen } from './check.ts';
import { install, installerHere } from './install.ts';

/** In every C library. */
const ALWAYS_THERE = ['', 'C', 'POSIX'];

const SETTINGS = ['lc_messages', 'lc_monetary', 'lc_numeric', 'lc_time'] as const;

export async function checkLocales(
  { signal }: CloneRun,
  { facts, hostConfiguration }: Pick<Seen, 'facts' | 'hostConfiguration'>,
  { notice }: Findings,
): Promise<void> {
  const databases = new Map(facts.locales.map((one) => [one.locale, one.databases]));
  // A configuration of this host is not the source's.
  const settings = hostConfiguration === null ? SETTINGS : [];
  const locales = new Set([
    ...databases.keys(),
    ...settings.map((name) => facts.settings[name] ?? ''),
  ]);
  for (const locale of locales) {
    if (ALWAYS_THERE.includes(locale) || (await isKnown(locale, signal))) continue;
    const closed = databases.get(locale) ?? [];
    const named = settings.filter((name) => facts.settings[name] === locale);
    const consequences = [
      ...(named.length > 0 ? [`does not start with ${named.join(', ')}`] : []),
      ...(closed.length > 0 ? [`lets nobody into ${closed.join(', ')}`] : []),
    ];
    notice({
      code: 'LOCALE_MISSING',
      message: `the locale ${locale} is not installed on this host: the replica ${consequences.join(' and ')}`,
      facts: { locale, databases: closed.join(', '), settings: named.join(', ') },
      hint: 'Install it here as on the source.',
      remedies: installation(locale, await installerHere()),
    });
  }
}

/** The program says so where it cannot be set; one that is not there, as without glibc, knows them all. */
async function isKnown(locale: string, signal: AbortSignal): Promise<boolean> {
  const command = { file: 'locale', args: [], env: { LC_ALL: locale } };
  const said = await runProcess(command, { signal, accept: 'any' }).catch(() => ({ stderr: '' }));
  signal.throwIfAborted();
  return !said.stderr.includes('Cannot set');
}

/** `de_DE.UTF-8`, `de_DE@euro`, `de_DE.iso885915@euro`. */
const LOCALE = /^(([a-z]{2,3})_[A-Z]{2})(?:\.([A-Za-z0-9-]+))?(@[a-z]+)?$/;

function installation(locale: string, installer: string | null): readonly Remedy[] {
  const [, , language, charmap] = LOCALE.exec(locale) ?? [];
  if (language === undefined) return [];
  // Debian makes those that are listed in a file, and forgets others with the next update.
  if (installer?.endsWith('/apt-get') === true) {
    const map = charmap === undefined || /^utf-?8$/i.test(charmap) ? 'UTF-8' : charmap;
    return [
      ...install(installer, 'locales', 'host'),
      { kind: 'append', on: 'host', where: '/etc/locale.gen', text: `${locale} ${map}` },
      { kind: 'shell', on: 'host', where: 'root', text: 'locale-gen' },
    ];
  }
  return install(installer, `glibc-langpack-${language}`, 'host');
}
