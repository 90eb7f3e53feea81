/**
 * Fresh clusters by copying one that `initdb` made once.
 *
 * initdb takes close to a second, a copy a tenth of it. Templates lie in a directory of the user who runs the tests; each is
 * made aside and renamed into place, so that parallel test processes never see half of one. A template that was not
 * used for a day is removed when a new one is made.
 *
 * Copies share the system identifier of their template. A test about the identity of clusters asks for its own `initdb`.
 */
import { createHash } from 'node:crypto';
import { chown, lstat, mkdir, mkdtemp, readdir, rename, rm, stat, utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { codeOf, runProcess } from '@pgcloned/process';
import { partsUser, runAsPartsUser, runsAsRoot } from './parts-user.ts';

/** 40 MB; a disk that is busy with another test may stall for long. */
const COPY_TIMEOUT_MS = 60_000;
const UNUSED_MS_MAX = 24 * 60 * 60 * 1000;

export interface ClusterRecipe {
  readonly binDirectory: string;
  readonly initdbArgs: readonly string[];
}

/** Runs `initdb`: superuser `postgres`, trust, checksums. */
export async function initCluster(dataDirectory: string, recipe: ClusterRecipe): Promise<void> {
  await runAsPartsUser([
    join(recipe.binDirectory, 'initdb'),
    '--pgdata',
    dataDirectory,
    '--username=postgres',
    '--auth=trust',
    '--encoding=UTF8',
    '--locale=C.UTF-8',
    '--data-checksums',
    '--no-sync',
    ...recipe.initdbArgs,
  ]);
}

/** The same by copying a template. */
export async function copyCluster(dataDirectory: string, recipe: ClusterRecipe): Promise<void> {
  const template = await clusterTemplate(recipe);
  // -a keeps the owner when we are root.
  await runProcess(
    { file: 'cp', args: ['-aT', '--reflink=auto', template, dataDirectory], env: {} },
    { signal: AbortSignal.timeout(COPY_TIMEOUT_MS) },
  );
}

async function clusterTemplate(recipe: ClusterRecipe): Promise<string> {
  const directory = await templateDirectory();
  const { mtimeMs } = await stat(join(recipe.binDirectory, 'postgres'));
  const key = createHash('sha256')
    .update(JSON.stringify([recipe, mtimeMs]))
    .digest('hex')
    .slice(0, 16);
  const template = join(directory, key);
  try {
    await utimes(template, new Date(), new Date());
    return template;
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') throw error;
  }
  await removeUnused(directory);
  const unfinished = await mkdtemp(join(directory, 'unfinished-'));
  if (runsAsRoot) await chown(unfinished, partsUser.uid, partsUser.gid);
  await initCluster(unfinished, recipe);
  try {
    await rename(unfinished, template);
  } catch (error) {
    const code = codeOf(error);
    if (code !== 'ENOTEMPTY' && code !== 'EEXIST') throw error;
    // Another test process was first, and its template is as good.
    await rm(unfinished, { recursive: true });
  }
  return template;
}

async function templateDirectory(): Promise<string> {
  const uid = process.getuid?.() ?? 0;
  const directory = join(tmpdir(), `testbed-templates-${String(uid)}`);
  await mkdir(directory, { recursive: true, mode: 0o711 });
  const found = await lstat(directory);
  if (!found.isDirectory() || found.uid !== uid) {
    throw new Error(`${directory} is not ours; remove it`);
  }
  return directory;
}

async function removeUnused(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    const path = join(directory, name);
    try {
      const { mtimeMs } = await stat(path);
      if (Date.now() - mtimeMs > UNUSED_MS_MAX) await rm(path, { recursive: true });
    } catch (error) {
      // Another test process tidies up as well.
      if (codeOf(error) !== 'ENOENT') throw error;
    }
  }
}
