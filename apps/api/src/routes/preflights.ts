/** The resource `preflights`: what stands against a clone, as the worker of its host finds it now. */
import {
  bySeverity,
  CloneSpec,
  findingOfError,
  type PreflightReport,
  PreflightReport as PreflightReportSchema,
  refuseUnsupported,
} from '@pgcloned/contract';
import { type CloneStore, targetBusy } from '@pgcloned/queue';
import type { FastifyPluginAsyncZodOpenApi, FastifyZodOpenApiSchema } from 'fastify-zod-openapi';
import { admitClone, refuseSpelledOutSource } from '../admit-clone.ts';
import { PREFLIGHT_EXAMPLE } from '../examples.ts';
import { refuseNoBody } from '../json-body.ts';
import { BODY_REFUSED, EVERYWHERE, refusedBy, SPEC_REFUSALS } from '../responses.ts';

export const preflightRoutes: FastifyPluginAsyncZodOpenApi<{ store: CloneStore }> = async (
  app,
  { store },
) => {
  app.post(
    '/preflights',
    {
      config: { role: 'operator' },
      schema: {
        operationId: 'createPreflight',
        summary: 'Find what stands against a clone',
        description:
          'Takes the body of `POST /v1/clones` and has the worker of the target host look at source, target and ' +
          'itself, all at once, without changing anything. Answers when it is done: within seconds, or within a ' +
          'minute where something does not answer. Each finding comes with the commands that mend it.',
        tags: ['clones'],
        body: CloneSpec,
        response: {
          200: {
            id: 'Preflight',
            description: 'Everything that was found; `ready` says whether a clone can be made.',
            content: {
              'application/json': { schema: PreflightReportSchema, example: PREFLIGHT_EXAMPLE },
            },
          },
          ...EVERYWHERE,
          ...BODY_REFUSED,
          ...refusedBy(
            'REQUEST_INVALID',
            ...SPEC_REFUSALS,
            'QUEUE_UNAVAILABLE',
            'HOST_UNAVAILABLE',
          ),
        },
      } satisfies FastifyZodOpenApiSchema,
      preValidation: (request, _reply, next) => {
        refuseNoBody(request, 'Send the clone that you want as application/json.');
        refuseSpelledOutSource(request.body);
        next();
      },
    },
    async ({ body: spec }, reply) => {
      refuseUnsupported(spec);
      await admitClone(spec, store);
      const holder = await store.holderOf(spec.target);
      using answer = app.beginLongAnswer(reply);
      const report = await store.preflight(spec, { signal: answer.signal });
      return holder === undefined ? report : withHolder(report, holder);
    },
  );
};

/** A clone that waits for its turn holds no lock yet, so its worker does not see it. */
function withHolder(report: PreflightReport, holder: string): PreflightReport {
  const others = report.findings.filter(({ code }) => code !== 'TARGET_BUSY');
  const findings = [findingOfError('target', targetBusy(holder)), ...others].toSorted(bySeverity);
  return { ...report, ready: false, findings };
}
