/** `pgcloned run`, and other programs, on another host of the testbed, for what is measured over its cable. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { promisify } from 'node:util';
import {
  asPartsUser,
  type OtherHost,
  PGCLONED,
  partsEnvironment,
  writePartsFile,
} from '@pgcloned/testbed';

/** One that hangs shall not hang for ever. */
const TOOL_LIMIT_MS = 30 * 60_000;

export interface Run {
  readonly process: { readonly pid: number };
  readonly ended: Promise<string>;
}

/** Starts a clone on the other host. `ended` settles with all that it has said, one object per line. */
export async function startRun(host: OtherHost, specFile: string, spec: object): Promise<Run> {
  await writePartsFile(specFile, JSON.stringify(spec));
  const [file = '', ...args] = host.on(
    asPartsUser([process.execPath, PGCLONED, '--json', 'run', '--file', specFile]),
  );
  const child = spawn(file, args, {
    cwd: '/',
    env: { ...partsEnvironment },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child, 'spawn');
  return { process: { pid: child.pid ?? 0 }, ended: text(child.stdout) };
}

export interface RunResult {
  readonly bytes: number;
  readonly durationMs: number;
  readonly compression: string | null;
}

/** What a clone that has succeeded says last. */
export function resultOf(output: string): RunResult {
  const last = JSON.parse(output.trimEnd().split('\n').at(-1) ?? '');
  if (last.event !== 'result') throw new Error('the clone failed');
  return last.result;
}

/** @param host Null: here. @returns What it has said. */
export async function runThere(
  host: OtherHost | null,
  argv: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<string> {
  const mine = asPartsUser(argv);
  const [file = '', ...args] = host === null ? mine : host.on(mine);
  const { stdout } = await promisify(execFile)(file, args, {
    cwd: '/',
    env: { ...partsEnvironment, ...env },
    timeout: TOOL_LIMIT_MS,
  });
  return stdout;
}
