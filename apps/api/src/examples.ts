/** Examples for the OpenAPI document. They are made from the schemas, so they cannot be wrong. */
import { Clone, CloneSpec, Host, newClone, PreflightReport } from '@pgcloned/contract';

export const ID = '0193465f0d6d7a7e8f4d3a1c5b6e7f80';

const SPEC_EXAMPLE = {
  source: { name: 'orders' },
  target: { host: 'replica-1', dataDirectory: '/var/lib/postgresql/15/main' },
  replica: { start: true, waitFor: 'streaming' },
  labels: { team: 'billing' },
};

const TEMPLATE = {
  source: { name: 'orders' },
  target: { host: 'ci-1', dataDirectory: '/srv/pg/clones/template' },
  method: 'reflink',
  replica: { start: true, profile: 'small' },
  labels: { template: 'orders' },
  protected: true,
};

/** Bodies of `POST /v1/clones` by what they are for. */
export const SPEC_EXAMPLES = {
  standby: { summary: 'A standby on another host, which streams', value: SPEC_EXAMPLE },
  template: { summary: 'A template on the host of its source, at once', value: TEMPLATE },
  databasePerTestRun: {
    summary: 'A database for one test run, from the template',
    value: {
      source: { clone: ID },
      target: { host: 'ci-1', dataDirectory: '/srv/pg/clones/run-4711' },
      method: 'reflink',
      replica: { start: true, profile: 'small' },
      ttl: 3600,
    },
  },
};

export const QUEUED_CLONE_EXAMPLE = newClone({
  id: ID,
  spec: CloneSpec.parse(SPEC_EXAMPLE),
  createdAt: '2026-11-20T09:00:00.000Z',
});

export const RUNNING_CLONE_EXAMPLE = Clone.parse({
  ...QUEUED_CLONE_EXAMPLE,
  state: 'running',
  phase: 'copy-files',
  startedAt: '2026-11-20T09:00:00.120Z',
  progress: {
    bytesTotal: 3_758_096_384,
    bytesDone: 1_288_490_188,
    filesTotal: 13_400,
    filesDone: 2210,
    wireBytes: 1_289_104_211,
    keptBytes: 0,
    compression: 'none',
    bytesPerSecond: 429_496_729,
    etaSeconds: 6,
    wal: { startLsn: '0/2000028', receivedLsn: '0/2A4F1C8' },
    phases: QUEUED_CLONE_EXAMPLE.progress.phases.map((phase, index) => ({
      ...phase,
      state: index < 3 ? 'done' : index === 3 ? 'running' : 'waiting',
      startedAt: index < 4 ? '2026-11-20T09:00:00.120Z' : null,
      endedAt: index < 3 ? '2026-11-20T09:00:00.940Z' : null,
    })),
    workers: [
      { index: 0, bytesDone: 644_245_094, bytesPerSecond: 214_748_364 },
      { index: 1, bytesDone: 644_245_094, bytesPerSecond: 214_748_365 },
    ],
  },
});

/** Its server is to be stopped. */
export const ENDED_CLONE_EXAMPLE = Clone.parse({
  ...RUNNING_CLONE_EXAMPLE,
  state: 'succeeded',
  phase: 'start-replica',
  endedAt: '2026-11-20T09:00:10.380Z',
  waitingFor: 'host replica-1 to stop the server of the clone',
  progress: {
    ...RUNNING_CLONE_EXAMPLE.progress,
    bytesDone: 3_758_096_384,
    filesDone: 13_400,
    wireBytes: 3_758_710_407,
    bytesPerSecond: 0,
    etaSeconds: null,
    phases: QUEUED_CLONE_EXAMPLE.progress.phases.map((phase) => ({
      ...phase,
      state: 'done',
      startedAt: '2026-11-20T09:00:00.120Z',
      endedAt: '2026-11-20T09:00:10.380Z',
    })),
  },
  result: {
    dataDirectory: '/var/lib/postgresql/15/main',
    connectionString: 'postgresql:///postgres?host=%2Fvar%2Frun%2Fpostgresql&port=5432',
    source: { address: 'db1:5432', role: 'primary' },
    systemIdentifier: '7710193196751962146',
    timeline: 1,
    startLsn: '0/2000028',
    stopLsn: '0/2A4F1F8',
    bytes: 3_758_096_384,
    files: 13_400,
    wireBytes: 3_758_710_407,
    keptBytes: 0,
    compression: 'none',
    durationMs: 10_260,
    warnings: [],
    verification: { transfer: 'passed', wal: 'passed', pages: 'passed', boot: 'skipped' },
  },
  instance: { ...RUNNING_CLONE_EXAMPLE.instance, state: 'running', port: 5432 },
});

export const HOST_EXAMPLE = Host.parse({
  name: 'replica-1',
  version: '0.1.0',
  contract: { min: 1, max: 1 },
  postgresMajors: [15, 17],
  dataRoots: ['/var/lib/postgresql'],
  sources: ['orders'],
  filesystems: [
    {
      path: '/var/lib/postgresql',
      totalBytes: 107_374_182_400,
      freeBytes: 85_899_345_920,
      reflink: false,
    },
  ],
  concurrency: 2,
  runningClones: [ID],
  online: true,
  lastSeenAt: '2026-11-20T09:00:03.000Z',
});

export const LOG_LINE_EXAMPLE = {
  time: '2026-11-20T09:00:00.940Z',
  level: 'info',
  phase: 'start-backup',
  message: 'backup started',
  fields: { startLsn: '0/2000028' },
};

export const PREFLIGHT_EXAMPLE = PreflightReport.parse({
  ready: false,
  findings: [
    {
      severity: 'error',
      check: 'source',
      code: 'SOURCE_RIGHTS_MISSING',
      message: 'cloner may not replicate',
      hint: 'Run as superuser in database postgres of the source: ALTER ROLE cloner REPLICATION;',
      facts: { user: 'cloner', database: 'postgres', grant: 'ALTER ROLE cloner REPLICATION;' },
      remedies: [
        { kind: 'sql', on: 'source', where: 'postgres', text: 'ALTER ROLE cloner REPLICATION;' },
      ],
    },
  ],
  notChecked: [],
  facts: {
    source: {
      version: '15.18',
      systemIdentifier: '7710193196751962146',
      timeline: 1,
      bytes: 3_758_096_384,
      tablespaces: [],
      rsyncVersion: '3.5.0',
    },
    host: {
      rsyncVersion: '3.5.0',
      filesystems: [
        {
          path: '/var/lib/postgresql',
          freeBytes: 85_899_345_920,
          neededBytes: 4_831_838_208,
          reserveBytes: 1_073_741_824,
        },
      ],
    },
    estimate: { bytesPerSecond: 429_496_729, seconds: 9, probedBytes: 67_108_864 },
  },
  durationMs: 1840,
});
