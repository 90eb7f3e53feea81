/**
 * The life of a clone.
 *
 *     queued ──start──► running ──finish──► succeeded
 *      │ │ ▲              │ │ └────fail───► failed
 *      │ │ └─interrupt────┘ │
 *      │ │                cancel
 *      │ └──fail──► failed  ▼
 *      └──cancel─┐      cancelling ──stop──► cancelled
 *                └──────────────────────────► cancelled
 *
 * Between the wish to cancel and its end lies work on two hosts, hence `cancelling`; nothing runs any more once the state
 * is `cancelled`. A clone that was never begun has nothing to stop, so it is cancelled at once.
 */

export const STATES = [
  'queued',
  'running',
  'cancelling',
  'succeeded',
  'failed',
  'cancelled',
] as const;

export type CloneState = (typeof STATES)[number];

export const CLONE_EVENTS = ['start', 'interrupt', 'finish', 'fail', 'cancel', 'stop'] as const;

export type CloneEvent = (typeof CLONE_EVENTS)[number];

/** Every state answers every event, so that the compiler finds a forgotten case. Null: refused. */
const NEXT: Record<CloneState, Record<CloneEvent, CloneState | null>> = {
  queued: {
    start: 'running',
    interrupt: null,
    finish: null,
    fail: 'failed',
    cancel: 'cancelled',
    stop: null,
  },
  running: {
    start: null,
    interrupt: 'queued',
    finish: 'succeeded',
    fail: 'failed',
    cancel: 'cancelling',
    stop: null,
  },
  // Whoever asked for the cancel was told that the clone stops; its own end no longer counts.
  cancelling: {
    start: null,
    interrupt: null,
    finish: 'cancelled',
    fail: 'cancelled',
    cancel: 'cancelling',
    stop: 'cancelled',
  },
  succeeded: ended(),
  failed: ended(),
  cancelled: ended(),
};

function ended(): Record<CloneEvent, null> {
  return { start: null, interrupt: null, finish: null, fail: null, cancel: null, stop: null };
}

/** The state after `event`, or null if `state` refuses it. */
export function nextState(state: CloneState, event: CloneEvent): CloneState | null {
  return NEXT[state][event];
}

/** Whether a clone in this state will never change again. */
export function hasEnded(state: CloneState): boolean {
  return CLONE_EVENTS.every((event) => NEXT[state][event] === null);
}
