/** What `pgcloned preflight` prints. */
import type { PreflightReport, Remedy } from '@pgcloned/contract';
import { expect, test } from 'vitest';
import { formatReport } from '../src/preflight-text.ts';

const reportWith = (remedies: Remedy[]): PreflightReport => ({
  ready: false,
  findings: [
    {
      ...{ severity: 'error', check: 'source', code: 'SOURCE_RIGHTS_MISSING' },
      ...{ message: 'cloner may not replicate', hint: null, facts: {}, remedies },
    },
  ],
  notChecked: [],
  facts: { source: null, host: { rsyncVersion: null, filesystems: [] }, estimate: null },
  durationMs: 1,
});

test.each<[Remedy, string]>([
  [
    { kind: 'sql', on: 'source', where: 'postgres', text: 'X' },
    'on the source, as superuser in database postgres',
  ],
  [
    { kind: 'sql', on: 'primary', where: 'orders', text: 'X' },
    'on the primary of the source, as superuser in database orders',
  ],
  [{ kind: 'shell', on: 'host', where: 'root', text: 'X' }, 'on the target host, as root'],
  [
    { kind: 'prepend', on: 'source', where: '/srv/pg_hba.conf', text: 'X' },
    'on the source, as the first line of /srv/pg_hba.conf',
  ],
  [{ kind: 'request', on: 'caller', where: null, text: 'X' }, 'in the request'],
])('a remedy stands below the place where it is to be applied: %o', (remedy, place) => {
  expect(formatReport(reportWith([remedy]))).toContain(`\n  ${place}:\n      X`);
});
