/**
 * How a worker reaches a source cluster: its SQL, its SSH server, its rsync daemon.
 *
 * Secrets are named by files that only the worker's host has; none is a value here.
 */
import * as z from 'zod';

const port = z.int().min(1).max(65_535);

const Ssh = z.strictObject({
  host: z.string().min(1).nullable().default(null),
  user: z.string().min(1).default('postgres'),
  port: port.default(22),
  privateKeyFile: z.string().min(1).nullable().default(null),
  agent: z.boolean().default(false),
  knownHostsFile: z.string().min(1).nullable().default(null),
  insecure: z.boolean().default(false),
  tunnelDatabase: z.boolean().default(false),
});

const PortRange = z
  .string()
  .regex(/^\d{1,5}-\d{1,5}$/, 'must be a range such as 45000-45999')
  .refine((range) => {
    const [first = 0, last = 0] = range.split('-').map(Number);
    return first >= 1024 && first <= last && last <= 65_535;
  }, 'must lie within 1024-65535, the smaller port first');

const Rsyncd = z.strictObject({
  ports: PortRange.default('45000-45999'),
  address: z.string().min(1).nullable().default(null),
});

const Replication = z.strictObject({
  user: z.string().min(1).nullable().default(null),
  passFile: z.string().min(1).nullable().default(null),
});

export const SourceConfiguration = z.strictObject({
  host: z.string().min(1),
  port: port.default(5432),
  user: z.string().min(1).default('postgres'),
  database: z.string().min(1).default('postgres'),
  passFile: z.string().min(1).nullable().default(null),
  sslmode: z
    .enum(['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'])
    .default('prefer'),
  sslRootCertFile: z.string().min(1).nullable().default(null),
  dataDirectory: z.string().min(1).nullable().default(null),
  ssh: Ssh.prefault({}),
  rsyncd: Rsyncd.prefault({}),
  replication: Replication.prefault({}),
});

export type SourceConfiguration = z.output<typeof SourceConfiguration>;
