/**
 * A preflight alone: the checks of the first phase of a clone, and some that only look ahead, all of them at once.
 *
 * Promises: nothing is changed on either side, no lock is kept, and it ends within {@link PREFLIGHT_MS_MAX} and the time
 * that closing takes; what was not answered by then is a finding. What stands against the clone is never thrown.
 */
import {
  bySeverity,
  CloneError,
  type Finding,
  findingOfError,
  findingOfNotice,
  type PreflightReport,
  refuseForbiddenSettings,
  refuseUnfitSource,
  refuseUnsupported,
} from '@pgcloned/contract';
import { type SourceFacts, versionName } from '@pgcloned/postgres';
import { withCleanup } from '../cleanup.ts';
import type { CloneRun } from '../clone-run.ts';
import type { CloneObserver } from '../observer.ts';
import type { ClonePlan } from '../plan.ts';
import { makeLockLookout } from '../target/locks.ts';
import { lookForPort } from '../target/ports.ts';
import { controlTransfer } from '../transfer-control.ts';
import { type Looked, runChecks, type Seen } from './check.ts';
import { CHECKS, FURTHER_CHECKS } from './checks.ts';
import { withPackages } from './library-packages.ts';

/** A host that answers nothing costs up to 20 s per way to it, and callers wait for no more than a minute. */
const PREFLIGHT_MS_MAX = 45_000;

/**
 * @throws {CloneError} `NOT_SUPPORTED`, `SETTING_FORBIDDEN`: then there is nothing to look for.
 * @throws The signal's reason if `signal` aborts; by then everything is closed.
 */
export async function runPreflight(
  plan: ClonePlan,
  { signal }: { readonly signal: AbortSignal },
): Promise<PreflightReport> {
  const startedMs = performance.now();
  refuseUnsupported(plan.spec);
  refuseUnfitSource(plan.spec, plan.source);
  refuseForbiddenSettings(plan.spec.replica.settings, plan.host.allowedSettings);
  const limit = new AbortController();
  const timer = setTimeout(() => {
    limit.abort(tooSlow());
  }, PREFLIGHT_MS_MAX);
  try {
    return await withCleanup(
      async (cleanup) => {
        const run: CloneRun = {
          plan,
          observer: SILENT,
          warn: () => {},
          signal: AbortSignal.any([signal, limit.signal]),
          cleanup,
          lasting: cleanup,
          locks: makeLockLookout(plan.id),
          port: lookForPort(plan.id),
          looksOnly: true,
          filled: new Set(),
          sent: () => {},
          transferControl: controlTransfer(plan.spec.transfer),
          name: `pgcloned_${plan.id}_${String(plan.attempt)}`,
          watch: (lost) => {
            let watching = true;
            void lost.then((error) => {
              if (watching) limit.abort(error);
            });
            return () => {
              watching = false;
            };
          },
        };
        const looked: Looked[] = [];
        const seen = await runChecks([...CHECKS, ...FURTHER_CHECKS], run, (stage) =>
          looked.push(...stage),
        );
        const judged = judge(looked, seen, limit.signal);
        const findings = await withPackages(judged.findings, seen, run.signal);
        signal.throwIfAborted();
        return {
          ...judged,
          findings: [...findings],
          facts: factsOf(seen),
          durationMs: Math.round(performance.now() - startedMs),
        };
      },
      // What is only closed here ends with its connection.
      () => {},
    );
  } finally {
    clearTimeout(timer);
  }
}

/** What was broken off says so in its own words; the reason is what counts, once. */
function judge(
  looked: readonly Looked[],
  seen: Partial<Seen>,
  limit: AbortSignal,
): Pick<PreflightReport, 'ready' | 'findings' | 'notChecked'> {
  const findings = new Map<string, Finding>();
  for (const { name, errors, notices } of looked) {
    const found = [
      ...errors.map((error) =>
        findingOfError(name, isBrokenOff(error, limit) ? limit.reason : error),
      ),
      ...notices.map((notice) => findingOfNotice(name, notice)),
    ];
    for (const finding of found) {
      // Two ways may lead to one fact: the role that lacks REPLICATION is refused by the WAL sender, too.
      const [remedy] = finding.remedies;
      // What mends this host mends nothing there, though it may be the same command.
      const identity =
        remedy === undefined
          ? finding.message
          : `${remedy.on === 'host' ? 'here' : 'there'} ${remedy.text}`;
      const key = `${finding.code} ${identity}`;
      if (!findings.has(key)) findings.set(key, withPlaces(finding, seen));
    }
  }
  const sorted = [...findings.values()].toSorted(bySeverity);
  return {
    ready: !sorted.some(({ severity }) => severity === 'error'),
    findings: sorted,
    notChecked: looked.filter(({ leftOut }) => leftOut).map(({ name }) => name),
  };
}

/** Whoever was refused a connection does not know where the file lies; another connection may have told. */
function withPlaces(finding: Finding, { facts }: Partial<Seen>): Finding {
  const hbaFile = facts?.configFiles.hbaFile ?? '';
  if (hbaFile === '') return finding;
  const remedies = finding.remedies.map((remedy) =>
    remedy.where === 'pg_hba.conf' ? { ...remedy, where: hbaFile } : remedy,
  );
  return { ...finding, remedies };
}

function isBrokenOff(error: unknown, limit: AbortSignal): boolean {
  return limit.aborted && !(error instanceof CloneError);
}

function factsOf({
  facts,
  probe,
  rooms,
  link,
  rsyncVersion,
}: Partial<Seen>): PreflightReport['facts'] {
  const bytes = facts === undefined ? null : totalBytes(facts);
  return {
    source:
      facts === undefined
        ? null
        : {
            version: versionName(facts.versionNum),
            systemIdentifier: facts.systemIdentifier,
            timeline: facts.timeline,
            bytes,
            tablespaces: facts.tablespaces.map(({ name, location, bytes: size }) => ({
              name,
              location,
              bytes: size,
            })),
            rsyncVersion: probe?.rsyncVersion ?? null,
          },
    host: {
      rsyncVersion: rsyncVersion ?? null,
      filesystems: (rooms ?? []).map((room) => ({ ...room })),
    },
    estimate:
      link === undefined || bytes === null
        ? null
        : { ...link, seconds: Math.ceil(bytes / Math.max(1, link.bytesPerSecond)) },
  };
}

/** Null if a part of it is not known. */
function totalBytes({ databaseBytes, tablespaces }: SourceFacts): number | null {
  return tablespaces.reduce<number | null>(
    (sum, { bytes }) => (sum === null || bytes === null ? null : sum + bytes),
    databaseBytes,
  );
}

function tooSlow(): CloneError {
  return new CloneError(
    'STALLED',
    `not everything was answered within ${String(PREFLIGHT_MS_MAX / 1000)} s`,
    {
      facts: { limitMs: PREFLIGHT_MS_MAX },
      hint: 'See what of the source answers slowly, and ask again.',
    },
  );
}

const nothing = () => {};

/** A preflight tells all it has to say in its report. */
const SILENT: CloneObserver = {
  phaseStarted: nothing,
  phaseEnded: nothing,
  interrupted: nothing,
  begunFrom: nothing,
  waiting: nothing,
  copyPlanned: nothing,
  compression: nothing,
  workersChanged: nothing,
  copied: nothing,
  kept: nothing,
  sent: nothing,
  filling: nothing,
  wal: nothing,
  warning: nothing,
  log: nothing,
  instance: nothing,
  published: nothing,
  leftover: nothing,
  putAway: nothing,
};
