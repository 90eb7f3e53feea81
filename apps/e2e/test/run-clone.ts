/**
 * `pgcloned run` as a user starts it: the real command, as the parts' user, with a SPEC on standard input.
 *
 * It can be stopped in the middle by what it says about its phases, so that a test interrupts it where it wants to.
 */
import type { PhaseName } from '@pgcloned/contract';
import { type RunningProcess, startProcess } from '@pgcloned/process';
import { asPartsUser, PGCLONED, partsEnvironment, type Source } from '@pgcloned/testbed';

// biome-ignore lint/suspicious/noExplicitAny: the test says what it expects in it
type Json = any;

export interface Ended {
  readonly status: number | null;
  /** How everything that it makes elsewhere begins: `pgcloned_<id>`. Empty if it did not get that far. */
  readonly name: string;
  /** What `--json` printed last: the result with instance and leftovers; undefined after a failure. */
  readonly result: Json;
  /** The error as `--json` prints it; undefined after a success. */
  readonly error: Json;
  /** Warnings and log lines. */
  readonly messages: readonly string[];
  readonly stderr: string;
}

export interface Running {
  readonly process: RunningProcess;
  /** `pgcloned_<id>`; empty until it has told its id. */
  readonly name: () => string;
  /** Settles once the phase runs; rejects if the clone ends without it. */
  readonly reached: (phase: PhaseName) => Promise<void>;
  /** Settles once this share of all bytes is copied; rejects if the clone ends before. */
  readonly copied: (share: number) => Promise<void>;
  /** Settles once it has said this beside its progress; rejects if the clone ends before. */
  readonly said: (text: RegExp) => Promise<void>;
  readonly ended: Promise<Ended>;
}

/** What a SPEC for `pgcloned run` says of a source of the testbed. */
export interface RunSpecText {
  readonly target: { readonly dataDirectory: string; readonly [name: string]: unknown };
  readonly [section: string]: unknown;
}

export interface RunCloneOptions {
  readonly arguments?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Turns the argv into one that runs on another host. */
  readonly on?: (argv: readonly string[]) => readonly string[];
}

/** Starts a clone of `source`; `spec.source`, if given, is merged over what the testbed says. */
export async function startClone(
  source: Pick<Source, 'configuration'>,
  spec: RunSpecText,
  options: RunCloneOptions = {},
): Promise<Running> {
  const lines: Json[] = [];
  const errorLines: string[] = [];
  const waiting = new Map<PhaseName, PromiseWithResolvers<void>>();
  const waitFor = (phase: PhaseName) => {
    const known = waiting.get(phase) ?? Promise.withResolvers<void>();
    // A test that no longer waits must not fail by the rejection.
    known.promise.catch(() => {});
    waiting.set(phase, known);
    return known;
  };
  let wantedShare = Number.POSITIVE_INFINITY;
  const share = Promise.withResolvers<void>();
  share.promise.catch(() => {});
  const awaited = new Map<RegExp, PromiseWithResolvers<void>>();
  const hear = () => {
    for (const [text, { resolve }] of awaited)
      if (lines.some((line) => line.event === 'message' && text.test(line.text))) resolve();
  };
  const onLine = (line: string) => {
    const said: Json = JSON.parse(line);
    lines.push(said);
    hear();
    for (const { name, state } of said.progress?.phases ?? [])
      if (state !== 'waiting') waitFor(name).resolve();
    const { bytesDone = 0, bytesTotal = 0 } = said.progress ?? {};
    if (bytesTotal > 0 && bytesDone >= wantedShare * bytesTotal) share.resolve();
  };
  const [file = '', ...args] = (options.on ?? ((argv) => argv))([
    ...asPartsUser([
      process.execPath,
      PGCLONED,
      '--json',
      'run',
      '--file',
      '-',
      '--progress-interval',
      '0.1',
      ...(options.arguments ?? []),
    ]),
  ]);
  const child = await startProcess(
    {
      file,
      args,
      cwd: '/',
      env: { ...partsEnvironment, ...options.env },
      input: JSON.stringify({
        ...spec,
        source: { ...source.configuration, ...(spec.source as object | undefined) },
      }),
    },
    { onLine, onErrorLine: (line) => errorLines.push(line), killAfterMs: 60_000 },
  );
  const ended = child.exited.then(({ status }): Ended => {
    for (const { reject } of [...waiting.values(), share, ...awaited.values()])
      reject(new Error(`the clone ended before: ${errorLines.join('\n')}`));
    const found = lines.findLast((line) => line.event === 'result');
    const failure = [...errorLines].reverse().find((line) => line.startsWith('{"error"'));
    return {
      status,
      name: nameOf(lines),
      result: found,
      error: failure === undefined ? undefined : JSON.parse(failure).error,
      messages: lines.filter(({ event }) => event === 'message').map(({ text }) => text),
      stderr: errorLines.join('\n'),
    };
  });
  return {
    process: child,
    name: () => nameOf(lines),
    reached: async (phase) => {
      await waitFor(phase).promise;
    },
    copied: async (wanted) => {
      wantedShare = wanted;
      await share.promise;
    },
    said: async (text) => {
      const told = Promise.withResolvers<void>();
      awaited.set(text, told);
      hear();
      await told.promise;
    },
    ended,
  };
}

function nameOf(lines: readonly Json[]): string {
  const id: string | undefined = lines.find(({ event }) => event === 'started')?.id;
  return id === undefined ? '' : `pgcloned_${id}`;
}

/** A clone from start to end. */
export async function runClone(
  source: Pick<Source, 'configuration'>,
  spec: RunSpecText,
  options: RunCloneOptions = {},
): Promise<Ended> {
  return await (await startClone(source, spec, options)).ended;
}
