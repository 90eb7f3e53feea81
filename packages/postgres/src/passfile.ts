/**
 * Password files as libpq reads them: `host:port:database:user:password`, first matching line wins.
 *
 * Not by the `pgpass` package: it answers nothing when PGPASSWORD is set anywhere in the environment, knows no sockets
 * and writes its warnings to standard error.
 */
import { readFile, stat } from 'node:fs/promises';
import { codeOf, isMissing } from '@pgcloned/process';

/** Where libpq was built to look for sockets, on Debian and upstream: such a host is `localhost` in a passfile. */
const DEFAULT_SOCKET_DIRECTORIES = ['/var/run/postgresql', '/tmp'];

/** Why libpq refuses it most often. */
export const OPEN_TO_OTHERS = 'has group or world access';

export interface PassfileKey {
  readonly host: string;
  readonly port: number;
  readonly database: string;
  readonly user: string;
}

/**
 * What an open file would give away to others is refused by libpq, and so here.
 *
 * @returns `refused` says why the file may not be used; `missing` that there is none.
 */
export async function readPassfile(
  path: string,
): Promise<
  | { readonly state: 'read'; readonly content: string }
  | { readonly state: 'missing' }
  | { readonly state: 'refused'; readonly reason: string }
> {
  try {
    const found = await stat(path);
    if (!found.isFile()) return { state: 'refused', reason: `${path} is not a plain file` };
    if ((found.mode & 0o077) !== 0)
      return { state: 'refused', reason: `${path} ${OPEN_TO_OTHERS}` };
    return { state: 'read', content: await readFile(path, 'utf8') };
  } catch (error) {
    if (isMissing(error)) return { state: 'missing' };
    if (codeOf(error) === 'EACCES') return { state: 'refused', reason: `${path} may not be read` };
    throw error;
  }
}

/** The password of the first line that matches `key`, or null. */
export function findPassword(content: string, key: PassfileKey): string | null {
  const host = DEFAULT_SOCKET_DIRECTORIES.includes(key.host) ? 'localhost' : key.host;
  const wanted = [host, String(key.port), key.database, key.user];
  for (const line of content.split('\n')) {
    if (line.startsWith('#')) continue;
    const fields = splitFields(line.replace(/\r$/, ''));
    const password = fields[4];
    if (password === undefined || password === '') continue;
    const matches = wanted.every((value, index) => {
      const field = fields[index];
      return field === '*' || unescapeField(field ?? '') === value;
    });
    if (matches) return unescapeField(password);
  }
  return null;
}

/** One line, with its end. */
export function formatPassfileLine(key: PassfileKey, password: string): string {
  const fields = [key.host, String(key.port), key.database, key.user, password];
  if (fields.some((field) => /[\n\r\0]/.test(field)))
    throw new RangeError('a passfile cannot hold line breaks');
  const escaped = fields.map((field) => field.replace(/[\\:]/g, '\\$&'));
  return `${escaped.join(':')}\n`;
}

/** Still with their backslashes, so that an escaped `*` stays different from the wildcard. */
function splitFields(line: string): readonly string[] {
  return Array.from(line.matchAll(/((?:\\.|[^:])*)(?::|$)/g), ([, field = '']) => field);
}

function unescapeField(field: string): string {
  return field.replace(/\\(.)/g, '$1');
}
