/** The shape of `pgcloned.yaml`. Reading files and environment is the business of the command line. */
import * as z from 'zod';
import { HostName } from './clone-spec.ts';
import { LocalSource, PortRange, SourceConfiguration } from './source.ts';

const ROLES = ['viewer', 'operator', 'admin'] as const;
/** viewer: read; operator: also create and cancel; admin: everything. */
export type Role = (typeof ROLES)[number];

export const Token = z.strictObject({
  name: z.string().min(1).max(63),
  sha256: z.string().regex(/^[0-9a-f]{64}$/, 'must be the SHA-256 of the token in hexadecimal'),
  role: z.enum(ROLES),
});
export type Token = z.output<typeof Token>;

const file = z.string().min(1);

const Tls = z.strictObject({
  certFile: file,
  keyFile: file,
  clientCaFile: file.nullable().default(null),
});

const Api = z.strictObject({
  listen: z
    .string()
    .regex(/^(?:\[[0-9a-fA-F:]+\]|[^:[\]]+):\d{1,5}$/, 'must be ADDRESS:PORT')
    .default('127.0.0.1:7432'),
  tls: Tls.nullable().default(null),
  tokens: z.array(Token).default([]),
});

const StartMethod = z.union([
  z.strictObject({ method: z.enum(['pg_ctl', 'pg_ctlcluster']) }),
  z.strictObject({ command: z.array(z.string()).min(1) }),
]);
export type StartMethod = z.output<typeof StartMethod>;

const Worker = z.strictObject({
  concurrency: z.int().min(1).max(64).default(2),
  dataRoots: z.array(z.string().regex(/^\//, 'must be an absolute path')).nullable().default(null),
  postgresBin: z
    .string()
    .regex(/^\/.*\{major\}/, 'must be an absolute path with {major} in it')
    .default('/usr/lib/postgresql/{major}/bin'),
  start: StartMethod.default({ method: 'pg_ctl' }),
  allowedSettings: z.array(z.string()).default([]),
  stallSeconds: z.number().min(1).max(86_400).default(60),
  noSpaceSeconds: z.number().min(0).max(86_400).default(600),
  leaseSeconds: z.number().min(3).max(600).default(15),
  ports: PortRange.default('5500-5999'),
});

export const Configuration = z.strictObject({
  host: HostName.nullable().default(null),
  stateDirectory: z.string().regex(/^\//, 'must be an absolute path').nullable().default(null),
  redis: z
    .string()
    .regex(
      /^(?:embedded$|rediss?:\/\/|unix:\/\/\/)/,
      'must be embedded, redis://…, rediss://… or unix:///path',
    )
    .default('embedded'),
  api: Api.prefault({}),
  worker: Worker.prefault({}),
  sources: z
    .record(
      z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, 'is not a name for a source'),
      z.union([LocalSource, SourceConfiguration]),
    )
    .default({}),
});
export type Configuration = z.output<typeof Configuration>;
