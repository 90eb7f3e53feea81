import fc from 'fast-check';
import { expect, test } from 'vitest';
import { CLONE_EVENTS, type CloneState, hasEnded, nextState, STATES } from '../src/index.ts';

test('every state answers every event with a state or a refusal', () => {
  for (const state of STATES) {
    for (const event of CLONE_EVENTS) {
      const next = nextState(state, event);
      expect(next === null || STATES.includes(next), `${state} ${event}`).toBe(true);
    }
  }
});

test('the ended states are succeeded, failed and cancelled, and they refuse everything', () => {
  expect(STATES.filter(hasEnded)).toEqual(['succeeded', 'failed', 'cancelled']);
});

test('the life of a clone is the one that was published', () => {
  const transitions = STATES.flatMap((state) =>
    CLONE_EVENTS.flatMap((event) => {
      const next = nextState(state, event);
      return next === null ? [] : [`${state} -${event}-> ${next}`];
    }),
  );

  expect(transitions).toEqual([
    'queued -start-> running',
    'queued -fail-> failed',
    'queued -cancel-> cancelled',
    'running -interrupt-> queued',
    'running -finish-> succeeded',
    'running -fail-> failed',
    'running -cancel-> cancelling',
    'cancelling -finish-> cancelled',
    'cancelling -fail-> cancelled',
    'cancelling -cancel-> cancelling',
    'cancelling -stop-> cancelled',
  ]);
});

test('whoever was told that a clone is being cancelled never sees another end', () => {
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...CLONE_EVENTS)), (events) => {
      let state: CloneState = 'cancelling';
      for (const event of events) state = nextState(state, event) ?? state;

      expect(['cancelling', 'cancelled']).toContain(state);
    }),
  );
});
