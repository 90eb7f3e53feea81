/**
 * Configuration files of a cluster: quoting values, adding settings, and what a stopped cluster would run with.
 *
 * The last assignment of a setting wins, also over the included files before it, and `postgresql.auto.conf` is read
 * after everything else. So settings are appended there and nothing that stands in the files is ever edited (R9.4).
 */
import { join } from 'node:path';
import type { ServerAddress } from '@pgcloned/contract';
import { runProcess, together } from '@pgcloned/process';
import type { ConnectionSettings } from './connection-settings.ts';

const SETTING_NAME = /^[A-Za-z_][A-Za-z0-9_$]*(?:\.[A-Za-z_][A-Za-z0-9_$]*)*$/;

/** Each is a process of 10 to 20 ms of CPU time; more at once would only wait for each other. */
const QUERIES_AT_ONCE = 4;

/** A value for a configuration file, with its quotes. Line feeds are escaped, since no value may span lines. */
export function quoteSetting(value: string): string {
  if (value.includes('\0')) throw new RangeError('a setting cannot hold a NUL');
  const escaped = value
    .replaceAll('\\', '\\\\')
    .replaceAll("'", "''")
    .replaceAll('\n', '\\n')
    .replaceAll('\r', '\\r');
  return `'${escaped}'`;
}

/** @returns The text of `postgresql.auto.conf` with one more line per setting, which wins over all before. */
export function appendSettings(
  autoConf: string,
  settings: Readonly<Record<string, string>>,
): string {
  const lines = Object.entries(settings).map(([name, value]) => {
    if (!SETTING_NAME.test(name)) throw new RangeError(`not the name of a setting: ${name}`);
    return `${name} = ${quoteSetting(value)}\n`;
  });
  const separator = autoConf === '' || autoConf.endsWith('\n') ? '' : '\n';
  return `${autoConf}${separator}${lines.join('')}`;
}

/** The same text without the lines that {@link appendSettings} made of these settings; the server writes them the same way. */
export function withoutSettings(
  autoConf: string,
  settings: Readonly<Record<string, string>>,
): string {
  const lines = new Set(
    Object.entries(settings).map(([name, value]) => `${name} = ${quoteSetting(value)}`),
  );
  return autoConf
    .split('\n')
    .filter((line) => !lines.has(line))
    .join('\n');
}

/**
 * The value of `primary_conninfo`: how the standby reaches its primary. It never holds a password, since everybody who may
 * read settings reads it; a passfile that only the server's own user may read does (R9.5).
 *
 * @param servers Tried in this order.
 * @param passFile Where the standby finds its password, or null where it needs none.
 */
export function primaryConninfo(
  settings: Pick<ConnectionSettings, 'user' | 'sslmode' | 'sslRootCertFile'>,
  {
    servers,
    passFile,
  }: { readonly servers: readonly ServerAddress[]; readonly passFile: string | null },
): string {
  const keywords: Record<string, string | null> = {
    host: servers.map(({ host }) => host).join(','),
    port: servers.map(({ port }) => String(port)).join(','),
    user: settings.user,
    passfile: passFile,
    sslmode: settings.sslmode,
    sslrootcert: settings.sslRootCertFile,
  };
  return Object.entries(keywords)
    .flatMap(([keyword, value]) => (value === null ? [] : [`${keyword}=${quoteConninfo(value)}`]))
    .join(' ');
}

function quoteConninfo(value: string): string {
  return /^[A-Za-z0-9_./:@,-]+$/.test(value) ? value : `'${value.replace(/[\\']/g, '\\$&')}'`;
}

/**
 * What a server on `dataDirectory` would run with, all files and includes considered (R9.1). It need not run, nor have a
 * control file, and must be stopped only for settings that are computed at start.
 *
 * @param configFile Where the configuration lies outside the data directory, as on Debian; null: inside.
 * @returns Values in the units and spelling of `postgres -C`; `data_directory_mode` is decimal there.
 * @throws {CloneError} `PROCESS_FAILED` with the server's words if a file is invalid or a setting does not exist.
 */
export async function effectiveSettings<Name extends string>({
  binDirectory,
  dataDirectory,
  configFile,
  names,
  signal,
}: {
  readonly binDirectory: string;
  readonly dataDirectory: string;
  readonly configFile: string | null;
  readonly names: readonly Name[];
  readonly signal: AbortSignal;
}): Promise<Readonly<Record<Name, string>>> {
  const values: Partial<Record<Name, string>> = {};
  const waiting = [...names];
  const ask = async (): Promise<void> => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      const { stdout } = await runProcess(
        {
          file: join(binDirectory, 'postgres'),
          // Only as the very first argument does -C work for root, too.
          args: [
            '-C',
            name,
            '-D',
            dataDirectory,
            ...(configFile === null ? [] : ['-c', `config_file=${configFile}`]),
          ],
          env: { LC_ALL: 'C' },
        },
        { signal },
      );
      values[name] = stdout.toString().replace(/\n$/, '');
    }
  };
  await together(Array.from({ length: QUERIES_AT_ONCE }, ask));
  return values as Record<Name, string>;
}

/**
 * Whether a server on `dataDirectory` could work by io_uring (`io_method`, since 18): its build, the kernel, and how many files
 * this process and its children may open all have a say. Nothing may run there; it need not have a control file.
 */
export async function canUseIoUring({
  binDirectory,
  dataDirectory,
  signal,
}: {
  readonly binDirectory: string;
  readonly dataDirectory: string;
  readonly signal: AbortSignal;
}): Promise<boolean> {
  const settings = { io_method: 'io_uring', shared_buffers: '16MB', huge_pages: 'off' };
  const { stderr } = await runProcess(
    {
      file: join(binDirectory, 'postgres'),
      // What initdb does: it takes all that a start takes from the host, and ends.
      args: [
        ...['--check', '-D', dataDirectory],
        ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
      ],
      env: { LC_ALL: 'C' },
    },
    { signal, accept: 'any' },
  );
  return !stderr.includes('io_uring');
}
