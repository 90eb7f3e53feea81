/** The answer of a preflight: everything that stands against a clone, and how each of it is mended. */
import * as z from 'zod';
import { ERROR_CODES, Facts, RecordError } from './clone-record.ts';
import { CloneSpec } from './clone-spec.ts';
import { type CloneError, toCloneError } from './errors.ts';
import { NOTICES, type Notice, type NoticeCode } from './finding.ts';
import { Remedy } from './remedy.ts';

const SEVERITIES = ['error', 'warning', 'info'] as const;

const NOTICE_CODES = Object.keys(NOTICES) as [NoticeCode, ...NoticeCode[]];

export const Finding = z
  .object({
    severity: z.enum(SEVERITIES).meta({
      description: 'error: a clone would fail with `code`; warning: it would warn',
    }),
    check: z.string().meta({ description: 'Which check found it' }),
    code: z.enum([...ERROR_CODES, ...NOTICE_CODES]).meta({ description: 'What to decide by' }),
    message: z.string().meta({ description: 'What was found' }),
    hint: z.string().nullable().meta({ description: 'What can be done about it' }),
    facts: Facts.meta({ description: 'What was observed' }),
    remedies: z.array(Remedy).meta({
      description: 'What mends it, all of it in this order; empty where that needs a decision',
    }),
  })
  .meta({ id: 'Finding' });

export type Finding = z.output<typeof Finding>;

const Bytes = z.int().nonnegative();

const SourceSummary = z.object({
  version: z.string().meta({ description: 'Such as 15.18' }),
  systemIdentifier: z
    .string()
    .meta({ description: 'As text: it has more digits than a JSON number' }),
  timeline: z.int().meta({ description: 'The present one' }),
  bytes: Bytes.nullable().meta({ description: 'Of everything that is copied; null: not known' }),
  tablespaces: z
    .array(z.object({ name: z.string(), location: z.string(), bytes: Bytes.nullable() }))
    .meta({ description: 'Those besides pg_default and pg_global, with what they hold' }),
  rsyncVersion: z.string().nullable().meta({ description: 'null: not asked, or there is none' }),
});

const HostSummary = z.object({
  rsyncVersion: z.string().nullable().meta({ description: 'null: not asked, or there is none' }),
  filesystems: z
    .array(
      z.object({
        path: z.string().meta({ description: 'Where it is mounted' }),
        freeBytes: Bytes.meta({ description: 'What is free there now' }),
        neededBytes: Bytes.meta({ description: 'What the clone would take, with the reserve' }),
        reserveBytes: Bytes.meta({ description: 'What a clone leaves free there' }),
      }),
    )
    .meta({ description: 'Those that the clone would write; empty if that is not known' }),
});

const Estimate = z.object({
  bytesPerSecond: Bytes.meta({ description: 'As measured, within `transfer.maxRate`' }),
  seconds: Bytes.meta({ description: 'How long the copy would take at this rate' }),
  probedBytes: Bytes.meta({ description: 'What was fetched to measure it, and thrown away' }),
});

export const PreflightReport = z
  .object({
    ready: z.boolean().meta({ description: 'Whether no finding is an error' }),
    findings: z.array(Finding).meta({ description: 'Most severe first' }),
    notChecked: z.array(z.string()).meta({
      description: 'Checks that could not be made before the errors are mended',
    }),
    facts: z.object({
      source: SourceSummary.nullable().meta({ description: 'null: it could not be asked' }),
      host: HostSummary,
      estimate: Estimate.nullable().meta({ description: 'null: nothing could be fetched' }),
    }),
    durationMs: Bytes.meta({ description: 'Milliseconds that the preflight took' }),
  })
  .meta({ id: 'PreflightReport' });

export type PreflightReport = z.output<typeof PreflightReport>;

/** What the API leaves for the worker of a host. */
export const PreflightQuestion = z.object({ spec: CloneSpec, contract: z.int() });

/** What that worker leaves for the API. */
export const PreflightAnswer = z.union([
  z.object({ report: PreflightReport }),
  z.object({ error: RecordError }),
]);

export function findingOfError(check: string, thrown: unknown): Finding {
  const { code, message, hint, facts, remedies }: CloneError = toCloneError(thrown);
  return { severity: 'error', check, code, message, hint, facts, remedies: [...remedies] };
}

export function findingOfNotice(check: string, notice: Notice): Finding {
  const { code, message, hint = null, facts = {}, remedies = [] } = notice;
  const severity = NOTICES[code];
  return { severity, check, code, message, hint, facts, remedies: [...remedies] };
}

/** Most severe first, else in the order of the checks. */
export function bySeverity(one: Finding, other: Finding): number {
  return SEVERITIES.indexOf(one.severity) - SEVERITIES.indexOf(other.severity);
}
