/** `pgcloned preflight`: what stands against a clone, through the API. */
import { CloneError, type PreflightReport } from '@pgcloned/contract';
import { ask, findApi } from '../api-connection.ts';
import type { GlobalOptions, Invocation } from '../invocation.ts';
import { readYaml } from '../located-yaml.ts';
import { print, printJson } from '../output.ts';
import { formatReport } from '../preflight-text.ts';

/** The API answers within a minute, whatever does not answer it. */
const ANSWER_TIMEOUT_MS = 75_000;

export async function preflight(
  { environment, signal }: Invocation,
  options: GlobalOptions & { readonly file: string },
): Promise<void> {
  const spec = await readYaml(options.file, 'REQUEST_INVALID');
  const api = await findApi(environment, options.config);
  const report = await ask(
    signal,
    // The API is the judge of what it is sent: it may know more than this command.
    (limit) => api.http.POST('/v1/preflights', { body: spec.content as never, signal: limit }),
    spec.locate,
    ANSWER_TIMEOUT_MS,
  );
  tellReport(report as PreflightReport, options);
}

/** @throws {CloneError} `PREFLIGHT_FAILED` if a finding is an error, after all were printed. */
export function tellReport(report: PreflightReport, { json }: GlobalOptions): void {
  if (json === true) printJson(report);
  else print(formatReport(report));
  if (report.ready) return;
  const errors = report.findings.filter(({ severity }) => severity === 'error').length;
  throw new CloneError(
    'PREFLIGHT_FAILED',
    errors === 1
      ? 'one error stands against the clone'
      : `${String(errors)} errors stand against the clone`,
    { hint: 'Apply what is printed with each, and ask again.' },
  );
}
