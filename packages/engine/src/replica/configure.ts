/**
 * The configuration of the clone: that of the host where it has one, else that of the source, and in either case what
 * makes it a harmless standby, or a harmless cluster of its own.
 *
 * All of ours is appended to `postgresql.auto.conf`, which the server reads last, so nothing in the other files can
 * undo it (R9.4). The source's own text of that file is kept beside it.
 */
import { lookup } from 'node:dns/promises';
import { access, constants, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { isAbsolute, join, relative, resolve } from 'node:path';
import { type ServerAddress, serversOf } from '@pgcloned/contract';
import {
  appendSettings,
  canUseIoUring,
  effectiveSettings,
  formatPassfileLine,
  primaryConninfo,
  resolveConnection,
} from '@pgcloned/postgres';
import { ifMissing, isWithin } from '@pgcloned/process';
import type { CloneRun } from '../clone-run.ts';
import { isOwnAddress } from '../own-address.ts';
import type { Ready } from '../ready.ts';
import { exists } from '../target/marker.ts';
import { AUTO_CONF, detachedSettings, isDetached, untilReady } from './detached.ts';
import { actsForSource, listIn } from './libraries.ts';
import { settingsOf } from './profile.ts';
import { configuredSettings } from './required-settings.ts';
import {
  authenticationIncludesFiles,
  forgetUpstream,
  includesFiles,
  leaveToHost,
  neutralizePaths,
  readSourceAuthentication,
  readSourceConfiguration,
} from './source-configuration.ts';

const OWN_PASSFILE = 'pgcloned.pgpass';

/** R9.3, R9.4: what a copied configuration must not make a standby do. */
const HARMLESS: Readonly<Record<string, string>> = {
  recovery_target: '',
  recovery_target_name: '',
  recovery_target_time: '',
  recovery_target_xid: '',
  recovery_target_lsn: '',
  recovery_target_timeline: 'latest',
  recovery_min_apply_delay: '0',
  restore_command: '',
  archive_cleanup_command: '',
  recovery_end_command: '',
  archive_mode: 'off',
  // The copy is synced already; a look at every single file would only delay the first start (R8.1).
  recovery_init_sync_method: 'syncfs',
};

const SSL_FILES = ['ssl_cert_file', 'ssl_key_file', 'ssl_ca_file', 'ssl_crl_file', 'ssl_crl_dir'];

/** Writes the configuration into the directory that is being built. `fileMode` is that of all files there. */
export async function configureReplica(
  run: CloneRun,
  ready: Ready,
  fileMode: number,
): Promise<void> {
  const { spec } = run.plan;
  const detached = isDetached(run.plan);
  const directory = ready.data.build;
  const put = async (name: string, text: string) => {
    await writeFile(join(directory, name), text, { mode: fileMode });
  };
  if (ready.hostConfiguration === null) await bringSourceFiles(run, ready, put);
  // Two of them would leave in doubt which one counts (R9.7).
  else await rm(join(directory, 'postgresql.conf'), { force: true });

  const copied = await readFile(join(directory, AUTO_CONF), 'utf8').catch(ifMissing(''));
  const original = detached ? forgetUpstream(copied) : copied;
  await put(`pgcloned.${AUTO_CONF}.original`, original);
  const settings: Record<string, string> = {
    ...(ready.hostConfiguration === null && ready.facts.commandLineSettings),
    ...HARMLESS,
    // Gone with 16. A file that promotes the source would promote the clone on its host as well.
    ...(ready.facts.major < 16 && { promote_trigger_file: '' }),
    // Ours names no database in primary_conninfo, and no slot that another standby has.
    ...(ready.facts.major >= 17 && { sync_replication_slots: 'off' }),
    ...(ready.hostConfiguration === null ? await workableSettings(run, ready) : {}),
    ...(await workableIo(run, ready)),
    ...(detached && detachedSettings(ready.facts)),
    ...settingsOf(spec.replica.profile, ready.facts),
    cluster_name: clusterNameOf(run),
    primary_slot_name: spec.replica.slot ?? '',
    primary_conninfo: detached ? '' : await standbyConninfo(run, ready),
    ...(ready.port !== null && { port: String(ready.port) }),
    ...Object.fromEntries(
      Object.entries(spec.replica.settings).map(([name, value]) => [name, String(value)]),
    ),
  };
  const harmless = neutralizePaths(original);
  const inherited = ready.hostConfiguration === null ? harmless : leaveToHost(harmless);
  const own = appendSettings(
    `${inherited}\n# Made by pgcloned for clone ${run.plan.id}.\n`,
    settings,
  );
  await put(AUTO_CONF, own);
  if (!detached) return;
  const more = { ...(await harmlessLibraries(run, ready)), ...untilReady(run.plan) };
  await put(AUTO_CONF, appendSettings(own, more));
}

/** Asked of the configuration as it is written: the source may have other libraries from its next start on. */
async function harmlessLibraries(
  run: CloneRun,
  ready: Ready,
): Promise<Readonly<Record<string, string>>> {
  const name = 'shared_preload_libraries';
  if (run.plan.spec.replica.settings[name] !== undefined) return {};
  const { hostConfiguration, binDirectory, data } = ready;
  const { [name]: setting = '' } =
    hostConfiguration === null
      ? await effectiveSettings({
          ...{ binDirectory, names: [name], signal: run.signal },
          dataDirectory: data.build,
          configFile: null,
        })
      : await configuredSettings(ready, [name], run.signal);
  const libraries = listIn(setting);
  const kept = libraries.filter((library) => actsForSource(library) === null);
  if (kept.length === libraries.length) return {};
  for (const library of libraries) {
    const reason = actsForSource(library);
    if (reason !== null) run.warn(`${library} is not loaded in the clone, which ${reason}`);
  }
  return { [name]: kept.join(', ') };
}

/** What a server keeps of an application_name. */
const NAME_BYTES_MAX = 63;

/** R9.5: unique among the standbys of a source; also the application_name by which the source knows this one. */
export function clusterNameOf({ plan }: Pick<CloneRun, 'plan'>): string {
  const suffix = `-${plan.id.slice(-8)}`;
  const host = plan.spec.target.host.slice(0, NAME_BYTES_MAX - suffix.length);
  return plan.spec.replica.clusterName ?? `${host}${suffix}`;
}

/** What lies outside PGDATA on the source was not copied (R1.15). */
async function bringSourceFiles(
  run: CloneRun,
  { host, facts, data }: Ready,
  put: (name: string, text: string) => Promise<void>,
): Promise<void> {
  const reading = { runner: host.runner(), stallMs: run.plan.host.stallMs, signal: run.signal };
  // Null: it has another name on the source, or lies elsewhere.
  const copied = async (path: string, name: string) => {
    if (path !== join(facts.dataDirectory, name)) return null;
    const copy = join(data.build, name);
    // A server does without pg_ident.conf.
    return (await exists(copy)) ? await readFile(copy, 'utf8') : '';
  };
  const { configFile, hbaFile, identFile } = facts.configFiles;
  const settings = await copied(configFile, 'postgresql.conf');
  const text =
    settings === null || includesFiles(settings)
      ? await readSourceConfiguration(configFile, reading)
      : settings;
  const harmless = neutralizePaths(text);
  await put('postgresql.conf', isDetached(run.plan) ? forgetUpstream(harmless) : harmless);
  const authentication = { 'pg_hba.conf': hbaFile, 'pg_ident.conf': identFile };
  for (const [name, path] of Object.entries(authentication)) {
    const own = await copied(path, name);
    if (own === null || authenticationIncludesFiles(own))
      await put(name, await readSourceAuthentication(path, reading));
  }
}

/** R9.5b: settings of the source that would keep the clone from starting here, replaced and reported. */
async function workableSettings(
  run: CloneRun,
  ready: Ready,
): Promise<Readonly<Record<string, string>>> {
  const source = (name: string) => ready.facts.settings[name] ?? '';
  const replaced: Record<string, string> = {};
  const tell = (name: string, value: string) => {
    run.warn(`${name} of the source (${source(name)}) cannot work here; it is '${value}' instead`);
  };
  const replace = (name: string, value: string) => {
    replaced[name] = value;
    tell(name, value);
  };

  const detached = isDetached(run.plan);
  const addresses = listIn(source('listen_addresses'));
  if (!detached && !addresses.every(isListenable))
    replace(
      'listen_addresses',
      run.plan.source.local ? 'localhost' : `localhost, ${ready.host.ssh().localAddress}`,
    );
  const sockets = listIn(source('unix_socket_directories'));
  const isOwn = ready.sameHost || detached;
  const own = isOwn ? ownSocketDirectory(ready.data.final) : null;
  if (own !== null) replaced.unix_socket_directories = own;
  const usable =
    own !== null || (await Promise.all(sockets.map(isWritableDirectory))).every(Boolean);
  if (!usable)
    replace(
      'unix_socket_directories',
      (await isWritableDirectory('/var/run/postgresql')) ? '/var/run/postgresql' : '/tmp',
    );
  // The files have lost it (`neutralizePaths`); set to nothing, each start would complain that it cannot write it.
  if (source('external_pid_file') !== '') tell('external_pid_file', '');
  if (source('huge_pages') === 'on' && isOwn) replace('huge_pages', 'try');
  // What it is to have from its next start on, the files say already, and nobody has tried it.
  else if (isOwn) replaced.huge_pages = source('huge_pages');
  const logDirectory = resolve(ready.data.final, source('log_directory'));
  // Also `../log`: beside its source, that is the directory of the source.
  if (!isWithin(logDirectory, ready.data.final)) {
    const mayShare = !isOwn && (await isWritableDirectory(logDirectory));
    if (!mayShare) replace('log_directory', 'log');
  }
  if (source('ssl') === 'on') {
    const absolute = SSL_FILES.filter((name) => isAbsolute(source(name)));
    const isCopied = (name: string) => isWithin(source(name), ready.facts.dataDirectory);
    // What is copied with the data directory is taken from the copy: the source may go, or lie elsewhere.
    for (const name of absolute.filter(isCopied))
      replaced[name] = relative(ready.facts.dataDirectory, source(name));
    const elsewhere = absolute.filter((name) => !isCopied(name)).map(source);
    if (!(await Promise.all(elsewhere.map(isReadableFile))).every(Boolean)) replace('ssl', 'off');
  }
  return replaced;
}

/** R9.5b: also for a host with a configuration of its own, which an ALTER SYSTEM of the source comes before. */
async function workableIo(
  { warn, signal }: CloneRun,
  { facts, binDirectory, data }: Ready,
): Promise<Readonly<Record<string, string>>> {
  if (facts.settings.io_method !== 'io_uring') return {};
  if (await canUseIoUring({ binDirectory, dataDirectory: data.build, signal })) return {};
  warn("io_method of the source (io_uring) cannot work here; it is 'worker' instead");
  return { io_method: 'worker' };
}

/**
 * With the password in a file that only the server's own user may read (R9.5).
 *
 * The server that was copied comes first, then the others of the source, so that the replica finds one after a failover.
 */
async function standbyConninfo(run: CloneRun, ready: Ready): Promise<string> {
  const { source } = run.plan;
  const user = source.replication.user ?? source.user;
  const configured = source.replication.passFile ?? source.passFile;
  const settings = { ...ready.settings, user };
  const servers = await upstreamsOf(run, ready);
  if (configured !== null) return primaryConninfo(settings, { servers, passFile: configured });
  // That of the environment is the cloning user's.
  const given = user === source.user ? run.plan.password : null;
  const lines = await Promise.all(
    servers.map(async (server) => {
      const { password } = await resolveConnection(
        { ...source, ...server, user, passFile: null },
        given === null ? {} : { password: given },
      );
      return password === null
        ? ''
        : formatPassfileLine({ ...server, database: '*', user }, password);
    }),
  );
  const content = lines.join('');
  if (content === '') return primaryConninfo(settings, { servers, passFile: null });
  await writeFile(join(ready.data.build, OWN_PASSFILE), content, { mode: 0o600 });
  const passFile = join(ready.data.final, OWN_PASSFILE);
  return primaryConninfo(settings, { servers, passFile });
}

/**
 * The server of this very host is left out unless it is what was copied: the replica takes its place, and would find itself
 * where the others do not answer.
 */
async function upstreamsOf(
  { plan }: CloneRun,
  { settings: { host, port }, sameHost }: Ready,
): Promise<readonly ServerAddress[]> {
  const others: ServerAddress[] = [];
  for (const server of serversOf(plan.source)) {
    if (plan.source.hosts === null || (server.host === host && server.port === port)) continue;
    if (sameHost || !(await isHere(server.host))) others.push(server);
  }
  return [{ host, port }, ...others];
}

async function isHere(host: string): Promise<boolean> {
  // A name that nobody knows just now may be known when it is needed.
  const found = await lookup(host, { all: true }).catch(() => []);
  return found.some(({ address }) => isOwnAddress(address));
}

/** What the kernel takes for the path of a socket, its end included. */
const SOCKET_PATH_BYTES = 108;

/**
 * The data directory itself: its socket goes when it goes, and nobody gets near it who may not read the files. Null where its
 * path is too long for a socket.
 */
function ownSocketDirectory(dataDirectory: string): string | null {
  const isFit = Buffer.byteLength(`${dataDirectory}/.s.PGSQL.65535`) < SOCKET_PATH_BYTES;
  // A comma parts two directories, and no quotes are needed for a blank.
  return isFit && !/[,"]/.test(dataDirectory) ? dataDirectory : null;
}

const isListenable = (address: string) =>
  ['*', '0.0.0.0', '::', 'localhost', '127.0.0.1', '::1'].includes(address) ||
  isOwnAddress(address);

async function isWritableDirectory(path: string): Promise<boolean> {
  try {
    await access(path, constants.W_OK | constants.X_OK);
    return (await stat(path)).isDirectory();
  } catch {
    // Missing or not ours: either way it cannot be used.
    return false;
  }
}

async function isReadableFile(path: string): Promise<boolean> {
  try {
    await access(path, constants.R_OK);
    return true;
  } catch {
    // Missing or not ours: either way it cannot be used.
    return false;
  }
}
