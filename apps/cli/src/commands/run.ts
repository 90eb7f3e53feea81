/**
 * `pgcloned run`: one clone, made by the engine in this process, without Redis and API.
 *
 * A signal cancels it, and the command ends only after everything was tidied up. What could not be is named with the
 * command that removes it, whether the clone was made or not.
 */
import { type Instance, type Leftover, LOG_LEVELS, portsOf } from '@pgcloned/contract';
import {
  type CloneObserver,
  type ClonePlan,
  runClone,
  runPreflight,
  trackProgress,
} from '@pgcloned/engine';
import { v7 as uuidv7 } from 'uuid';
import { homeOf, readLogLevel, readSettings, type Settings } from '../config.ts';
import type { Environment, GlobalOptions, Invocation, ProgressOptions } from '../invocation.ts';
import { print, printJson } from '../output.ts';
import type { ProgressDisplay } from '../progress/display.ts';
import { openDisplay } from '../progress/open-display.ts';
import { filesOf, type RunRequest, readRunRequest, sshDefaults } from '../run-spec.ts';
import { formatLeftovers, formatSummary } from '../summary.ts';
import { tellReport } from './preflight.ts';

/** How often the display is told; it draws at its own pace. */
const TICK_MS = 200;

type RunOptions = GlobalOptions &
  ProgressOptions & {
    readonly file?: string;
    readonly keepTemporary?: boolean;
    readonly preflight?: boolean;
  };

/** @param places ORIGIN and CLONE. */
export async function run(
  invocation: Invocation,
  options: RunOptions,
  places: readonly string[],
): Promise<void> {
  const { environment, signal } = invocation;
  const settings = await readSettings(environment, options.config);
  const request = await readRunRequest({
    file: options.file,
    places,
    options: { ...options },
    environment,
    settings,
  });
  const plan = planOf(request, {
    settings,
    environment,
    keepTemporary: options.keepTemporary === true,
  });
  if (options.preflight === true) {
    tellReport(await runPreflight(plan, { signal }), options);
    return;
  }
  const minimum = LOG_LEVELS.indexOf(readLogLevel(environment, options, 'warn'));
  const outcome: Outcome = {
    leftovers: [],
    instance: {
      state: 'absent',
      port: null,
      expiresAt: null,
      protected: false,
      space: null,
      error: null,
    },
  };
  if (options.json === true) printJson({ event: 'started', id: plan.id });
  try {
    const result = await runWithDisplay(plan, { options, minimum, outcome, signal });
    const { leftovers, instance } = outcome;
    if (options.json === true) printJson({ event: 'result', result, instance, leftovers });
    else print(formatSummary({ sourceName: request.sourceName, result, instance, leftovers }));
  } catch (error) {
    for (const text of formatLeftovers(outcome.leftovers)) process.stderr.write(`${text}\n`);
    throw error;
  }
}

interface Outcome {
  leftovers: readonly Leftover[];
  instance: Instance;
}

async function runWithDisplay(
  plan: ClonePlan,
  {
    options,
    minimum,
    outcome,
    signal,
  }: {
    readonly options: RunOptions;
    /** The least log level that is shown, as an index of `LOG_LEVELS`. */
    readonly minimum: number;
    readonly outcome: Outcome;
    readonly signal: AbortSignal;
  },
) {
  using display = openDisplay(options);
  const tracker = trackProgress();
  const update = () => {
    display.update(tracker.snapshot());
  };
  const ticker = setInterval(update, TICK_MS);
  try {
    return await runClone(plan, {
      observer: observe({ display, tracker: tracker.observer, update, minimum, outcome }),
      signal,
    });
  } finally {
    clearInterval(ticker);
    update();
  }
}

function observe({
  display,
  tracker,
  update,
  minimum,
  outcome,
}: {
  readonly display: ProgressDisplay;
  readonly tracker: ReturnType<typeof trackProgress>['observer'];
  readonly update: () => void;
  readonly minimum: number;
  readonly outcome: Outcome;
}): CloneObserver {
  return {
    ...tracker,
    phaseStarted(name) {
      tracker.phaseStarted(name);
      update();
    },
    phaseEnded(name, state) {
      tracker.phaseEnded(name, state);
      update();
    },
    interrupted(next) {
      tracker.interrupted(next);
      const { error, attempt, pauseMs } = next;
      display.line(
        `interrupted: ${error.message}; attempt ${String(attempt)} begins in ${String(pauseMs / 1000)} s`,
      );
    },
    waiting(reason) {
      display.line(reason === null ? 'the clone goes on' : `the clone waits for ${reason}`);
    },
    filling() {
      // Whatever kills this process leaves directories that the next clone into them takes over.
    },
    warning(text) {
      display.line(`warning: ${text}`);
    },
    log(level, message, fields = {}) {
      if (LOG_LEVELS.indexOf(level) < minimum) return;
      const facts = Object.entries(fields).map(([name, value]) => `${name}=${String(value)}`);
      display.line([`${level}: ${message}`, ...facts].join(' '));
    },
    instance(change) {
      outcome.instance = { ...outcome.instance, ...change };
    },
    begunFrom() {
      // This process makes all attempts itself.
    },
    leftover(leftover) {
      outcome.leftovers = [...without(outcome.leftovers, leftover.what), leftover];
    },
    putAway(what) {
      outcome.leftovers = without(outcome.leftovers, what);
    },
  };
}

function without(leftovers: readonly Leftover[], what: string): readonly Leftover[] {
  return leftovers.filter((one) => one.what !== what);
}

function planOf(
  { spec, sourceName, source, password }: RunRequest,
  {
    settings,
    environment,
    keepTemporary,
  }: {
    readonly settings: Settings;
    readonly environment: Environment;
    readonly keepTemporary: boolean;
  },
): ClonePlan {
  const { worker, stateDirectory, file } = settings;
  const { keyFiles, knownHostsFiles } = sshDefaults(homeOf(environment));
  return {
    id: uuidv7().replaceAll('-', ''),
    attempt: 1,
    begunFrom: null,
    spec,
    sourceName,
    source,
    originClone: null,
    // Of the clones of a worker nobody knows anything here.
    isProtected: () => Promise.resolve(false),
    password,
    host: {
      // Whoever types the target decides where it lies, within what the operating system lets them write.
      dataRoots: null,
      postgresBin: worker.postgresBin,
      start: worker.start,
      allowedSettings: worker.allowedSettings,
      stallMs: worker.stallSeconds * 1000,
      noSpaceMs: worker.noSpaceSeconds * 1000,
      leaseMs: worker.leaseSeconds * 1000,
      ports: portsOf(worker.ports),
      protectedPaths: [
        stateDirectory,
        ...(file === null ? [] : [file]),
        ...filesOf(source),
        ...keyFiles,
      ],
      defaultSshKeyFiles: keyFiles,
      defaultKnownHostsFiles: knownHostsFiles,
      sshAgentSocket: environment.SSH_AUTH_SOCK || null,
    },
    keepTemporary,
  };
}
