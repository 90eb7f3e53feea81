/**
 * The record of a run, as it grows from what the engine says.
 *
 * States change only through the contract's table. What a record says is true of its attempt, from this worker.
 */
import {
  type Clone,
  type CloneError,
  type CloneEvent,
  type CloneResult,
  type ErrorFacts,
  expiring,
  type LogLevel,
  type LogLine,
  nextState,
  recordError,
  type TransferLimits,
  withTransfer,
} from '@pgcloned/contract';
import { type CloneObserver, trackProgress } from '@pgcloned/engine';

/** Something that warns in a loop must not make the record unreadable. */
const WARNINGS_MAX = 100;

export interface RunRecord {
  readonly observer: Omit<CloneObserver, 'filling' | 'begunFrom'>;
  readonly snapshot: () => Clone;
  readonly isPublished: () => boolean;
  /** Its turn has come for the first time. Not told as a change: it has to be claimed first. */
  readonly begin: () => void;
  /** The clone shall end: it is `cancelling` from now on. */
  readonly cancel: () => void;
  /** Its transfer goes on like this. */
  readonly changeTransfer: (limits: TransferLimits) => void;
  readonly succeed: (result: CloneResult) => void;
  /** The clone shall go on later: it is `queued` from now on. */
  readonly suspend: (waitingFor: string) => void;
  /** Ends as `cancelled` if that was asked for, else as `failed`. */
  readonly fail: (error: CloneError) => void;
}

export interface RecordListener {
  /** Something changed that nobody should have to wait for. */
  readonly changed: () => void;
  readonly line: (line: LogLine) => void;
}

/** @param clone As it is before its next attempt begins; what it has moved counts. */
export function startRunRecord(clone: Clone, listener: RecordListener): RunRecord {
  const tracker = trackProgress(clone.progress);
  let record = clone;
  const change = (fields: Partial<Clone>) => {
    record = { ...record, ...fields };
    listener.changed();
  };
  const end = (event: CloneEvent, fields: Partial<Clone>) => {
    const state = nextState(record.state, event) ?? record.state;
    const warnings = [...record.warnings];
    if (state === 'cancelled' && tracker.isPublished()) {
      const { dataDirectory } = record.spec.target;
      warnings.push(`${dataDirectory} was published before the cancel came through`);
    }
    const endedAt = now();
    const instance = expiring(record, endedAt);
    change({ ...fields, state, waitingFor: null, warnings, endedAt, instance });
  };
  const log = (level: LogLevel, message: string, fields: ErrorFacts = {}) => {
    listener.line({ time: now(), level, phase: tracker.phase(), message, fields: { ...fields } });
  };

  return {
    snapshot: () => ({
      ...record,
      phase: tracker.phase() ?? record.phase,
      progress: tracker.snapshot(),
    }),
    isPublished: tracker.isPublished,
    begin: () => {
      const state = nextState(record.state, 'start') ?? record.state;
      record = { ...record, state, startedAt: now(), waitingFor: null };
    },
    cancel: () => {
      // Between two attempts it waits, but it has things to tidy up all the same.
      const state = nextState(record.state, 'start') ?? record.state;
      change({ state: nextState(state, 'cancel') ?? state, waitingFor: null });
    },
    changeTransfer: (limits) => {
      const { workers, maxRate } = limits;
      log('info', 'the transfer was changed', { workers, maxRate });
      change(withTransfer(record, limits));
    },
    succeed: (result) => {
      const { wireBytes } = tracker.snapshot();
      const durationMs = Date.now() - Date.parse(record.startedAt ?? record.createdAt);
      // The engine knows of those attempts only that it made itself.
      end('finish', { result: { ...result, wireBytes, durationMs, warnings: record.warnings } });
    },
    suspend: (waitingFor) => {
      change({ state: nextState(record.state, 'interrupt') ?? record.state, waitingFor });
    },
    fail: (error) => {
      const cancelled = record.state === 'cancelling';
      end(cancelled ? 'stop' : 'fail', { error: cancelled ? null : recordError(error) });
    },
    observer: {
      ...tracker.observer,
      phaseStarted: (name) => {
        tracker.observer.phaseStarted(name);
        log('info', `phase ${name} begins`);
        const state = nextState(record.state, 'start') ?? record.state;
        change({ state, waitingFor: null });
      },
      phaseEnded: (name, state) => {
        tracker.observer.phaseEnded(name, state);
        log('info', `phase ${name} ${state === 'done' ? 'is done' : state}`);
        listener.changed();
      },
      interrupted: (next) => {
        tracker.observer.interrupted(next);
        const { error, attempt, pauseMs } = next;
        log('warn', `interrupted: ${error.message}`, { code: error.code, attempt, pauseMs });
        const state = nextState(record.state, 'interrupt') ?? record.state;
        change({ state, attempt, waitingFor: `the next attempt, after: ${error.message}` });
      },
      waiting: (reason) => {
        if (reason === null) log('info', 'the clone goes on');
        else log('warn', `the clone waits for ${reason}`);
        change({ waitingFor: reason });
      },
      published: () => {
        tracker.observer.published();
        listener.changed();
      },
      warning: (text) => {
        log('warn', text);
        // Each attempt says it anew.
        if (record.warnings.length < WARNINGS_MAX && !record.warnings.includes(text)) {
          change({ warnings: [...record.warnings, text] });
        }
      },
      log,
      instance: (fields) => {
        change({ instance: { ...record.instance, ...fields } });
      },
      leftover: (leftover) => {
        change({ leftovers: [...without(record.leftovers, leftover.what), leftover] });
      },
      putAway: (what) => {
        change({ leftovers: without(record.leftovers, what) });
      },
    },
  };
}

function without(leftovers: Clone['leftovers'], what: string): Clone['leftovers'] {
  return leftovers.filter((one) => one.what !== what);
}

function now(): string {
  return new Date().toISOString();
}
