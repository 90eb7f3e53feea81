/**
 * Every error that someone outside can act upon, in one table, and the class that carries it.
 *
 * A code is a promise: it is added, never renamed and never used for something else. An error without a code is a bug
 * of ours and reaches the outside as `INTERNAL`, without its text.
 */
import type { PhaseName } from './phases.ts';
import type { Remedy } from './remedy.ts';

/** Exit statuses of the command line by kind of error; apps/cli/README.md publishes them. */
export const EXIT_STATUS = {
  ok: 0,
  bug: 1,
  usage: 2,
  access: 3,
  notFound: 4,
  conflict: 5,
  unavailable: 6,
  refused: 7,
  failed: 8,
  cancelled: 130,
} as const;

interface CatalogueEntry {
  readonly httpStatus: number;
  readonly exitStatus: number;
  /** What the code means, whatever the occasion. */
  readonly title: string;
  /** Whether the same request may succeed later without anybody mending anything. */
  readonly retryable: boolean;
}

const entry = (
  httpStatus: number,
  kind: keyof typeof EXIT_STATUS,
  title: string,
  retryable = false,
): CatalogueEntry => ({ httpStatus, exitStatus: EXIT_STATUS[kind], title, retryable });

export const CATALOGUE = {
  // What the caller sent.
  REQUEST_MALFORMED: entry(400, 'usage', 'The request cannot be read'),
  REQUEST_INVALID: entry(422, 'usage', 'The request breaks a rule'),
  NOT_SUPPORTED: entry(422, 'usage', 'This is not supported yet'),
  SETTING_FORBIDDEN: entry(422, 'usage', 'This setting may not be set by a request'),
  HOST_UNKNOWN: entry(422, 'usage', 'No worker of this name has ever registered'),
  SOURCE_UNKNOWN: entry(422, 'usage', 'The host has no source of this name'),
  IDEMPOTENCY_KEY_REUSED: entry(422, 'usage', 'The idempotency key belongs to another request'),
  UNAUTHENTICATED: entry(401, 'access', 'The token is missing or unknown'),
  FORBIDDEN: entry(403, 'access', 'The role of the token does not allow this'),
  NOT_FOUND: entry(404, 'notFound', 'There is no such thing'),
  METHOD_NOT_ALLOWED: entry(405, 'usage', 'The resource does not take this method'),
  NOT_ACCEPTABLE: entry(406, 'usage', 'The response type is not available'),
  REQUEST_TOO_LARGE: entry(413, 'usage', 'The body is too large'),
  MEDIA_TYPE_UNSUPPORTED: entry(415, 'usage', 'The body is not application/json'),
  RATE_LIMITED: entry(429, 'unavailable', 'Too many requests', true),

  // What stands against it.
  TARGET_BUSY: entry(409, 'conflict', 'Another clone works on this target', true),
  TOO_LATE_TO_CANCEL: entry(409, 'conflict', 'The clone is published already'),
  CLONE_ENDED: entry(409, 'conflict', 'The clone has ended'),
  CLONE_NOT_ENDED: entry(409, 'conflict', 'The clone has not ended', true),
  CLONE_PROTECTED: entry(409, 'conflict', 'The clone is protected'),
  CLONE_EXPIRES: entry(409, 'conflict', 'The files of the clone are going to be removed'),
  INSTANCE_MISSING: entry(
    409,
    'conflict',
    'The clone has no instance for which this could be done',
  ),
  INSTANCE_CHANGED: entry(409, 'conflict', 'The directory is not the one that the clone filled'),
  STATE_DIRECTORY_BUSY: entry(409, 'conflict', 'Another pgcloned uses this state directory'),

  // Our own parts.
  HOST_UNAVAILABLE: entry(503, 'unavailable', 'The worker of the host does not answer', true),
  QUEUE_UNAVAILABLE: entry(503, 'unavailable', 'Redis does not answer', true),
  API_UNREACHABLE: entry(503, 'unavailable', 'The API does not answer', true),
  CONFIGURATION_INVALID: entry(500, 'usage', 'The configuration is not valid'),
  RUNNING_AS_ROOT: entry(500, 'usage', 'This may not run as root'),
  TOOL_MISSING: entry(422, 'refused', 'A program is missing'),

  // The source, as preflight finds it.
  SOURCE_UNREACHABLE: entry(422, 'unavailable', 'The source does not answer', true),
  SOURCE_AUTHENTICATION_FAILED: entry(422, 'access', 'The source refuses the user'),
  SOURCE_VERSION_UNSUPPORTED: entry(422, 'refused', 'The version of the source is not supported'),
  SOURCE_RIGHTS_MISSING: entry(422, 'refused', 'The user lacks rights on the source'),
  SOURCE_SETTINGS_UNSUITABLE: entry(422, 'refused', 'A setting of the source rules a clone out'),
  SOURCE_NO_WAL_SENDER: entry(422, 'refused', 'The source has no free WAL sender', true),
  SOURCE_LAYOUT_UNSUPPORTED: entry(422, 'refused', 'The files of the source cannot be copied'),
  SOURCE_MISMATCH: entry(422, 'refused', 'The ways to the source lead to different clusters'),
  SSH_UNREACHABLE: entry(422, 'unavailable', 'The SSH server does not answer', true),
  SSH_AUTHENTICATION_FAILED: entry(422, 'access', 'The SSH server refuses the key'),
  SSH_HOST_KEY_UNKNOWN: entry(422, 'access', 'The SSH host key is not known'),
  SSH_HOST_KEY_MISMATCH: entry(422, 'access', 'The SSH host key is not the known one'),
  REMOTE_COMMAND_FAILED: entry(422, 'failed', 'A command on the source host failed', true),

  // The target, as preflight finds it.
  TARGET_INVALID: entry(422, 'refused', 'The target cannot hold a clone'),
  TARGET_OUTSIDE_DATA_ROOTS: entry(422, 'refused', 'The target lies outside the data roots'),
  TARGET_NOT_EMPTY: entry(409, 'conflict', 'The target is not empty'),
  TARGET_OTHER_CLUSTER: entry(409, 'conflict', 'The target holds another cluster'),
  TARGET_IN_USE: entry(409, 'conflict', 'A server runs on the target'),
  TARGET_NOT_WRITABLE: entry(422, 'refused', 'The target cannot be written'),
  TARGET_NO_SPACE: entry(422, 'refused', 'The target has too little space', true),
  REFLINK_UNSUPPORTED: entry(422, 'refused', 'Source and target cannot share blocks'),
  REPLICA_SETTINGS_TOO_LOW: entry(422, 'refused', 'The replica could not start with its settings'),

  PREFLIGHT_FAILED: entry(422, 'refused', 'Something stands against the clone'),

  // What went wrong on the way.
  SOURCE_LOST: entry(500, 'failed', 'The connection to the source was lost', true),
  SOURCE_NO_SPACE: entry(500, 'failed', 'The source has no space left', true),
  SOURCE_PROMOTED: entry(500, 'failed', 'The standby that was copied has been promoted', true),
  SOURCE_CHANGED: entry(500, 'failed', 'The source changed in a way that spoils the copy', true),
  WAL_RECEIVER_FAILED: entry(500, 'failed', 'The WAL stream broke', true),
  WAL_REMOVED: entry(500, 'failed', 'The source removed WAL that was still needed', true),
  WAL_INCOMPLETE: entry(500, 'failed', 'The collected WAL has a hole', true),
  RSYNCD_FAILED: entry(500, 'failed', 'The rsync daemon could not be used', true),
  TRANSFER_FAILED: entry(500, 'failed', 'Files could not be transferred'),
  STALLED: entry(500, 'failed', 'Nothing moved for too long', true),
  CONTROL_FILE_INVALID: entry(500, 'failed', 'The control file cannot be used', true),
  PUBLISH_FAILED: entry(500, 'failed', 'The clone could not be put into place'),
  REPLICA_START_FAILED: entry(500, 'failed', 'The published clone did not start as asked'),
  ON_READY_FAILED: entry(500, 'failed', 'A file of onReady failed in the clone'),
  VERIFICATION_FAILED: entry(500, 'failed', 'The published clone did not stand its test'),
  REMOVAL_FAILED: entry(500, 'failed', 'The files of the clone could not be removed', true),
  DEADLINE_EXCEEDED: entry(500, 'failed', 'The deadline of the clone has passed'),
  PROCESS_FAILED: entry(500, 'failed', 'A program failed'),
  WORKER_STOPPED: entry(500, 'failed', 'The worker was stopped', true),
  WORKER_LOST: entry(500, 'failed', 'The worker died', true),
  CANCELLED: entry(409, 'cancelled', 'The clone was cancelled'),
  INTERNAL: entry(500, 'bug', 'This is a bug in pgcloned'),
} as const satisfies Record<string, CatalogueEntry>;

export type ErrorCode = keyof typeof CATALOGUE;

export type ErrorFacts = Readonly<Record<string, string | number | boolean | null>>;

export interface CloneErrorOptions {
  /** Paths, numbers, exit statuses as they were seen. Everybody may read them, so none is a secret. */
  readonly facts?: ErrorFacts;
  /** What the user can do, as a full sentence. Left out only when we do not know. */
  readonly hint?: string;
  /** The exact commands that mend it, in the order in which they are to be applied. */
  readonly remedies?: readonly Remedy[];
  readonly cause?: unknown;
}

/** An error that someone outside can act upon. */
export class CloneError extends Error {
  override readonly name = 'CloneError';
  readonly code: ErrorCode;
  readonly facts: ErrorFacts;
  readonly hint: string | null;
  readonly remedies: readonly Remedy[];
  /** The phase it happened in; set by the engine, where it runs the phases. */
  phase: PhaseName | null = null;

  /** @param message A lower-case line without an end mark, such as `data directory is not empty`. */
  constructor(code: ErrorCode, message: string, options: CloneErrorOptions = {}) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.facts = options.facts ?? {};
    this.hint = options.hint ?? null;
    this.remedies = options.remedies ?? [];
  }

  get httpStatus(): number {
    return CATALOGUE[this.code].httpStatus;
  }

  get exitStatus(): number {
    return CATALOGUE[this.code].exitStatus;
  }

  get retryable(): boolean {
    return CATALOGUE[this.code].retryable;
  }
}

/** Whatever was thrown, as an error with a code: a stranger becomes `INTERNAL` with the stranger as its cause. */
export function toCloneError(error: unknown): CloneError {
  if (error instanceof CloneError) return error;
  return new CloneError('INTERNAL', 'unexpected error', {
    hint: 'Report this with the log of the process that said it.',
    cause: error,
  });
}
