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
  type LogLevel,
  type LogLine,
  nextState,
} from '@pgcloned/contract';
import { type CloneObserver, trackProgress } from '@pgcloned/engine';

/** Something that warns in a loop must not make the record unreadable. */
const WARNINGS_MAX = 100;

export interface RunRecord {
  readonly observer: CloneObserver;
  readonly snapshot: () => Clone;
  readonly isPublished: () => boolean;
  /** The clone shall end: it is `cancelling` from now on. */
  readonly cancel: () => void;
  readonly succeed: (result: CloneResult) => void;
  /** Ends as `cancelled` if that was asked for, else as `failed`. */
  readonly fail: (error: CloneError) => void;
}

export interface RecordListener {
  /** Something changed that nobody should have to wait for. */
  readonly changed: () => void;
  readonly line: (line: LogLine) => void;
}

/** @param clone The queued clone; its record becomes `running`. */
export function startRunRecord(clone: Clone, listener: RecordListener): RunRecord {
  const tracker = trackProgress();
  let record: Clone = {
    ...clone,
    state: nextState(clone.state, 'start') ?? clone.state,
    startedAt: now(),
    waitingFor: null,
  };
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
    change({ ...fields, state, waitingFor: null, warnings, endedAt: now() });
  };
  const log = (level: LogLevel, message: string, fields: ErrorFacts = {}) => {
    listener.line({ time: now(), level, phase: tracker.phase(), message, fields: { ...fields } });
  };

  return {
    snapshot: () => ({ ...record, phase: tracker.phase(), progress: tracker.snapshot() }),
    isPublished: tracker.isPublished,
    cancel: () => {
      // Between two attempts it waits, but it has things to tidy up all the same.
      const state = nextState(record.state, 'start') ?? record.state;
      change({ state: nextState(state, 'cancel') ?? state, waitingFor: null });
    },
    succeed: (result) => {
      end('finish', { result });
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
        if (record.warnings.length < WARNINGS_MAX) {
          change({ warnings: [...record.warnings, text] });
        }
      },
      log,
      instance: (fields) => {
        change({ instance: { ...record.instance, ...fields } });
      },
      leftover: (leftover) => {
        change({ leftovers: [...record.leftovers, leftover] });
      },
    },
  };
}

export function recordError(error: CloneError): NonNullable<Clone['error']> {
  const { code, message, hint, facts, retryable, phase } = error;
  return { code, message, hint, facts: { ...facts }, retryable, phase };
}

function now(): string {
  return new Date().toISOString();
}
