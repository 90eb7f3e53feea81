/** What this host is and has, as its worker tells it with every heartbeat. */
import { createHash, randomUUID } from 'node:crypto';
import { access, constants, readFile, stat, statfs } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { type Clone, CONTRACT_VERSION, type HostFacts, VERSION } from '@pgcloned/contract';
import { SUPPORTED_MAJORS, sharesBlocks } from '@pgcloned/engine';
import { ifMissing, writeDurably } from '@pgcloned/process';

export async function readHostFacts(o: {
  readonly name: string;
  readonly machineId: string;
  readonly workerId: string;
  readonly postgresBin: string;
  readonly dataRoots: readonly string[];
  readonly sources: readonly string[];
  readonly allowedSettings: readonly string[];
  readonly concurrency: number;
  readonly runningClones: readonly string[];
  readonly sharing: Sharing;
  /** Whose files are there. */
  readonly clones: readonly Clone[];
}): Promise<HostFacts> {
  const { postgresBin, sharing, clones, ...facts } = o;
  return {
    ...facts,
    version: VERSION,
    contract: { min: CONTRACT_VERSION, max: CONTRACT_VERSION },
    postgresMajors: await installedMajors(postgresBin),
    dataRoots: [...o.dataRoots],
    sources: [...o.sources],
    allowedSettings: [...o.allowedSettings],
    runningClones: [...o.runningClones],
    filesystems: await filesystemsOf(o.dataRoots, sharing, clones),
  };
}

async function installedMajors(postgresBin: string): Promise<number[]> {
  const installed: number[] = [];
  for (const major of SUPPORTED_MAJORS) {
    const postgres = join(postgresBin.replaceAll('{major}', String(major)), 'postgres');
    const isThere = await access(postgres, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (isThere) installed.push(major);
  }
  return installed;
}

/** Whether the filesystem that a directory lies on shares blocks; null if that is not known. */
type Sharing = (directory: string) => Promise<boolean | null>;

/** Finds it out once for each filesystem: it takes a file to do so, and does not change while that is mounted. */
export function rememberSharing(): Sharing {
  const known = new Map<string, boolean>();
  return async (directory) => {
    const place = `${String((await stat(directory)).dev)} ${directory}`;
    const shares = known.get(place) ?? (await sharesBlocks(directory));
    if (shares !== null) known.set(place, shares);
    return shares;
  };
}

async function filesystemsOf(
  dataRoots: readonly string[],
  sharing: Sharing,
  clones: readonly Clone[],
): Promise<HostFacts['filesystems']> {
  const filesystems: HostFacts['filesystems'] = [];
  for (const path of dataRoots) {
    // A root that is not mounted just now is left out; preflight names it when a clone wants it.
    const found = await statfs(path).catch(() => null);
    if (found === null) continue;
    const { blocks, bavail, bsize } = found;
    filesystems.push({
      path,
      totalBytes: blocks * bsize,
      freeBytes: bavail * bsize,
      reflink: await sharing(path).catch(() => null),
      clones: sumOf(clones.filter(({ spec }) => isBelow(spec.target.dataDirectory, path))),
    });
  }
  return filesystems;
}

const isBelow = (path: string, root: string) => !relative(root, path).startsWith('..');

function sumOf(clones: readonly Clone[]) {
  const sum = { count: 0, ownBytes: 0, sharedBytes: 0 };
  for (const { instance } of clones) {
    if (instance.space === null) continue;
    sum.count += 1;
    sum.ownBytes += instance.space.ownBytes;
    sum.sharedBytes += instance.space.sharedBytes;
  }
  return sum;
}

/**
 * Tells this machine's worker from that of any other, also where machines were copied or have no /etc/machine-id: it is
 * made of that and of a number in the state directory. Only a hash leaves the machine.
 */
export async function readMachineId(stateDirectory: string): Promise<string> {
  const path = join(stateDirectory, 'worker-identity');
  const known = await readFile(path, 'utf8').catch(ifMissing(null));
  const own = known ?? randomUUID();
  if (known === null) await writeDurably(path, own);
  const machine = await readFile('/etc/machine-id', 'utf8').catch(() => '');
  return createHash('sha256').update(`${machine.trim()} ${own}`).digest('hex').slice(0, 32);
}
